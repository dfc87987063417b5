/* Asks for one prediction, labels it in every way there is, and prints what the agent said. */
#define EDGESHIP_IMPLEMENTATION
#include "edgeship.h"

static void say(const edgeship_client *client, const char *what, int code, int is_known)
{
    printf("%s %d %d %s\n", what, code, is_known, edgeship_error(client));
}

int main(int count, char **words)
{
    edgeship_client client;
    edgeship_answer answer;
    unsigned char pixels[64] = {1, 2, 3};
    char prediction_id[128];
    int code, is_known = -1;
    edgeship_tensor image = {.name = "image", .dtype = "uint8", .shape = {8, 8}, .axes = 2, .data = pixels};
    if (count != 2 || edgeship_open(&client, words[1], 5.0) != EDGESHIP_OK)
        return 2;
    if (edgeship_infer_split(&client, "", &image, 1, 0.0, "user-1", &answer) != EDGESHIP_OK)
        return 3;
    snprintf(prediction_id, sizeof prediction_id, "%s", answer.prediction_id);
    code = edgeship_label(&client, prediction_id, 7, &is_known);
    say(&client, "label", code, is_known);
    code = edgeship_label(&client, prediction_id, 8, NULL);
    say(&client, "again", code, 0);
    code = edgeship_label(&client, "elsewhere-1", 300000, &is_known);
    say(&client, "unknown", code, is_known);
    code = edgeship_label(&client, "elsewhere-1", 3, &is_known);
    say(&client, "elsewhere", code, is_known);
    code = edgeship_label_name(&client, prediction_id, "three", &is_known);
    say(&client, "name", code, is_known);
    code = edgeship_outcome(&client, "rework_minutes", 12.5, prediction_id, &is_known);
    say(&client, "outcome", code, is_known);
    edgeship_close(&client);
    return 0;
}
