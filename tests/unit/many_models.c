/* Asks the models that it is told for one prediction each, through one client, and labels every answer. */
#define EDGESHIP_IMPLEMENTATION
#include "edgeship.h"

int main(int count, char **words)
{
    edgeship_client client;
    edgeship_answer answer;
    unsigned char pixels[64] = {1, 2, 3};
    char prediction_id[128];
    edgeship_tensor image = {.name = "image", .dtype = "uint8", .shape = {8, 8}, .axes = 2, .data = pixels};
    if (count < 3 || edgeship_open(&client, words[1], 5.0) != EDGESHIP_OK)
        return 2;
    for (int index = 2; index < count; index++) {
        int is_known = -1;
        int code = edgeship_infer(&client, words[index], &image, 1, 0.0, &answer);
        if (code != EDGESHIP_OK) {
            printf("%d %s\n", code, edgeship_error(&client));
            continue;
        }
        printf("%s", answer.model);
        snprintf(prediction_id, sizeof prediction_id, "%s", answer.prediction_id);
        code = edgeship_label(&client, prediction_id, 3, &is_known);
        printf(" %d %d\n", code, is_known);
    }
    edgeship_close(&client);
    return 0;
}
