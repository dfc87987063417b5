/* Reads frames from stdin ("length bytes" each, as on the socket) as answers to request 3, and prints what it finds. */
#define EDGESHIP_IMPLEMENTATION
#include "edgeship.h"

int main(void)
{
    unsigned char head[4];
    while (fread(head, 1, 4, stdin) == 4) {
        size_t length = (size_t)head[0] | (size_t)head[1] << 8 | (size_t)head[2] << 16;
        edgeship_client client;
        edgeship_answer answer;
        if (edgeship_open(&client, "/nowhere", 1.0) != EDGESHIP_OK)
            return 1;
        client.request_id = 3;
        client.received = malloc(4 + length + 1); /* no byte more than is promised: a reader past it is seen */
        if (client.received == NULL || fread(client.received + 4, 1, length, stdin) != length)
            return 1;
        int code = edgeship__answer(&client, length, &answer);
        printf("%d %s|", code, edgeship_error(&client));
        if (code != EDGESHIP_BAD_ANSWER) {
            printf("%s|%s|%s|%s|%s|%d|%d", answer.prediction_id, answer.model, answer.version, answer.release_digest,
                   answer.arm, (int)answer.latency_us, answer.count);
            for (int index = 0; index < answer.count; index++) {
                const edgeship_tensor *tensor = &answer.tensors[index];
                printf("|%s %s", tensor->name, tensor->dtype);
                for (int axis = 0; axis < tensor->axes; axis++)
                    printf(" %zu", tensor->shape[axis]);
                for (size_t byte = 0; byte < edgeship_size_bytes(tensor); byte++)
                    printf(",%d", ((const unsigned char *)tensor->data)[byte]);
            }
        }
        putchar(0); /* ends no text that a frame can hold */
        edgeship_close(&client);
    }
    return 0;
}
