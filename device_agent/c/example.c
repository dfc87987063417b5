/* Asks the agent for one prediction and prints the scores.
 *
 *     cc -std=c11 -Wall -Wextra -o example example.c
 *     ./example /var/lib/edgeship/run/infer.sock image uint8 8x8 pixels.raw
 */
#define EDGESHIP_IMPLEMENTATION
#include "edgeship.h"

static void print_tensor(const edgeship_tensor *tensor)
{
    size_t size_bytes = edgeship_size_bytes(tensor);
    printf("%s %s", tensor->name, tensor->dtype);
    for (int axis = 0; axis < tensor->axes; axis++)
        printf("%s%zu", axis ? "x" : " ", tensor->shape[axis]);
    if (strcmp(tensor->dtype, "float32") == 0)
        for (size_t index = 0; index < size_bytes / sizeof(float) && index < 10; index++)
            printf(" %.6g", (double)((const float *)tensor->data)[index]);
    printf("\n");
}

/* "8x8x3" into the shape; 0 where it is none. */
static int read_shape(const char *text, edgeship_tensor *tensor)
{
    for (tensor->axes = 0; *text; tensor->axes++) {
        char *rest;
        if (tensor->axes == EDGESHIP_MAX_AXES)
            return 0;
        tensor->shape[tensor->axes] = strtoul(text, &rest, 10);
        if (rest == text || (*rest && *rest != 'x'))
            return 0;
        text = *rest ? rest + 1 : rest;
    }
    return 1;
}

int main(int count, char **words)
{
    edgeship_client client;
    edgeship_answer answer;
    edgeship_tensor input = {0};
    if (count < 6 || !read_shape(words[4], &input)) {
        fprintf(stderr, "usage: example SOCKET NAME DTYPE SHAPE FILE [CALLS]\n");
        return 2;
    }
    input.name = words[2];
    input.dtype = words[3];
    size_t size_bytes = edgeship_size_bytes(&input);
    unsigned char *sample = malloc(size_bytes + 1);
    FILE *file = fopen(words[5], "rb");
    if (sample == NULL || file == NULL || fread(sample, 1, size_bytes + 1, file) != size_bytes) {
        fprintf(stderr, "%s does not hold %zu bytes\n", words[5], size_bytes);
        return 2;
    }
    fclose(file);
    input.data = sample;
    int code = edgeship_open(&client, words[1], 5.0);
    for (long calls = count > 6 ? atol(words[6]) : 1; calls > 0 && code == EDGESHIP_OK; calls--)
        code = edgeship_infer(&client, "", &input, 1, 0.0, &answer);
    if (code == EDGESHIP_OK) {
        printf("%s %s %s\n", answer.model, answer.version, answer.prediction_id);
        for (int index = 0; index < answer.count; index++)
            print_tensor(&answer.tensors[index]);
    } else {
        fprintf(stderr, "%s\n", edgeship_error(&client));
    }
    edgeship_close(&client);
    free(sample);
    return code;
}
