/* Edgeship: a C client of the agent's inference service, in one file, with libc and nothing else.
 *
 * In exactly one source file, before any other header:
 *
 *     #define EDGESHIP_IMPLEMENTATION
 *     #include "edgeship.h"
 *
 * in the others just include it: they may be C++ too, that one is C11. Linux. The protocol: docs/reference/protocol.md.
 *
 *     edgeship_client client;
 *     edgeship_open(&client, "/var/lib/edgeship/run/infer.sock", 5.0);
 *     edgeship_tensor image = {.name = "image", .dtype = "uint8", .shape = {8, 8}, .axes = 2, .data = pixels};
 *     edgeship_answer answer;
 *     if (edgeship_infer(&client, "", &image, 1, 0.0, &answer) == EDGESHIP_OK)
 *         use(answer.tensors[0].data);
 *     else
 *         fprintf(stderr, "%s\n", edgeship_error(&client));
 *     edgeship_close(&client);
 *
 * One client per thread. The agent may change the model at any moment: the client connects again and repeats the call.
 */
#ifndef EDGESHIP_H
#define EDGESHIP_H

#if defined(EDGESHIP_IMPLEMENTATION) && !defined(_GNU_SOURCE)
#define _GNU_SOURCE /* memfd_create and the seals */
#endif

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define EDGESHIP_MAX_AXES 8
#define EDGESHIP_MAX_TENSORS 16

enum {
    EDGESHIP_OK = 0,
    EDGESHIP_REFUSED = 1,     /* the agent answered with an error: the input's or the model's fault, or shed */
    EDGESHIP_UNREACHABLE = 2, /* the agent cannot be reached in time, or serves no model yet: try again later */
    EDGESHIP_BAD_CALL = 3,    /* a mistake in the call: an unknown dtype, too many axes, a request too long */
    EDGESHIP_BAD_ANSWER = 4   /* what came back is no answer */
};

/* A named array: C order, little-endian. */
typedef struct {
    const char *name;
    const char *dtype; /* bool, int8 ... int64, uint8 ... uint64, float16, float32, float64 */
    size_t shape[EDGESHIP_MAX_AXES];
    int axes;
    const void *data;
} edgeship_tensor;

/* What edgeship_infer fills in; everything it points to is valid until the next call with the same client. */
typedef struct {
    const char *prediction_id; /* names this prediction on this device */
    const char *model;
    const char *version;
    const char *release_digest; /* of the bundle that answered */
    const char *arm;            /* "main", or "b" for a version that shares the traffic with it */
    int64_t latency_us;         /* in the agent, from receipt to answer */
    int count;
    edgeship_tensor tensors[EDGESHIP_MAX_TENSORS]; /* outputs, batch axis of 1 included; aligned to 64 bytes */
} edgeship_answer;

/* Its fields are the implementation's. */
typedef struct {
    char path[108];
    double timeout_s;
    double spin_us;
    int is_looking;
    int short_waits;
    int short_waits_needed;
    double answered_s;
    int fd;
    uint64_t request_id;
    char error[256];
    unsigned char *received;
    size_t received_size;
    unsigned char *values;
    size_t values_size;
    int memory_fd;
    int memory_is_passed;
    int memory_turn;
    size_t memory_half;
    unsigned char *memory;
} edgeship_client;

/* Makes a client ready; connects at the first call. timeout_s: how long one call may take. */
int edgeship_open(edgeship_client *client, const char *socket_path, double timeout_s);

/* How long a call looks for its answer again and again, at most, before it sleeps until the answer comes, in
 * microseconds: 200 at the beginning, 0 for not at all. Spares what the system takes to wake a thread, and keeps a core
 * busy for as long; so a client looks only where the last answers came so soon, where the application asks again at
 * once, and where there is more than one core. */
void edgeship_spin(edgeship_client *client, double spin_us);

/* Runs a model on one raw sample (no batch axis). model: its name, or "" for the only one. deadline_ms: a request that
 * waited longer is refused unseen; 0 for none. Returns one of the codes above. */
int edgeship_infer(edgeship_client *client, const char *model, const edgeship_tensor *inputs, int count,
                   double deadline_ms, edgeship_answer *answer);

/* Points inputs[...].data to room in memory that the agent reads, for the next request: write the samples there, call
 * edgeship_infer with the same inputs, and nothing is copied on the way. Ask anew before every request; what lies there
 * at first is left from earlier ones. Returns EDGESHIP_OK, EDGESHIP_BAD_CALL or EDGESHIP_UNREACHABLE (no memory). */
int edgeship_room(edgeship_client *client, edgeship_tensor *inputs, int count);

/* The same; while two versions share the traffic, requests of one split_key go to one version. "" for none. */
int edgeship_infer_split(edgeship_client *client, const char *model, const edgeship_tensor *inputs, int count,
                         double deadline_ms, const char *split_key, edgeship_answer *answer);

/* Says what the right answer to an earlier prediction was: the index of its class. Saying it again changes nothing.
 * *is_known (may be NULL): whether the device still remembers the prediction; if not, the label counts as unknown. */
int edgeship_label(edgeship_client *client, const char *prediction_id, uint32_t label, int *is_known);

/* The same by the name of the class, where the model's output contract names its classes. */
int edgeship_label_name(edgeship_client *client, const char *prediction_id, const char *label, int *is_known);

/* Reports what became of an earlier prediction in a figure of your own, such as "rework_minutes", from -1e15 to
 * 1e15; a name counts once for each prediction. */
int edgeship_outcome(edgeship_client *client, const char *name, double value, const char *prediction_id,
                     int *is_known);

/* Why the last call failed, in one sentence; "" if it did not. */
const char *edgeship_error(const edgeship_client *client);

/* The size of an array in bytes; 0 for an unknown dtype. */
size_t edgeship_size_bytes(const edgeship_tensor *tensor);

/* Closes the connection and lets all memory go. */
void edgeship_close(edgeship_client *client);

#ifdef __cplusplus
}
#endif

#endif /* EDGESHIP_H */

#ifdef EDGESHIP_IMPLEMENTATION
#ifndef EDGESHIP_IMPLEMENTED
#define EDGESHIP_IMPLEMENTED

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define EDGESHIP__MAX_FRAME ((size_t)64 * 1024 * 1024)
#define EDGESHIP__SHARED_ABOVE ((size_t)32768)
#define EDGESHIP__ALIGNMENT ((size_t)64)
#define EDGESHIP__HEAD 8192
#define EDGESHIP__LONGEST_LOOK_US 200.0
#define EDGESHIP__PARTS (2 * EDGESHIP_MAX_TENSORS + 1)

/* A frame: what this client writes itself, cut where the application's data goes in between. */
typedef struct {
    unsigned char head[EDGESHIP__HEAD];
    size_t used;
    size_t cut;
    struct iovec parts[EDGESHIP__PARTS];
    int count;
    size_t total;
} edgeship__frame;

typedef struct {
    unsigned char *at;
    unsigned char *end;
    int is_bad;
} edgeship__reader;

typedef struct {
    unsigned char *start;
    size_t size;
} edgeship__bytes;

static int edgeship__fail(edgeship_client *client, int code, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(client->error, sizeof client->error, format, arguments);
    va_end(arguments);
    return code;
}

static double edgeship__now_s(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static size_t edgeship__item_bytes(const char *dtype)
{
    static const struct { const char *name; size_t size; } known[] = {
        {"bool", 1},  {"int8", 1},   {"uint8", 1},   {"int16", 2},   {"uint16", 2}, {"float16", 2},
        {"int32", 4}, {"uint32", 4}, {"float32", 4}, {"int64", 8},   {"uint64", 8}, {"float64", 8},
    };
    for (size_t index = 0; dtype != NULL && index < sizeof known / sizeof known[0]; index++)
        if (strcmp(dtype, known[index].name) == 0)
            return known[index].size;
    return 0;
}

/* Whether the array can be sized at all; its size goes to *size. */
static int edgeship__measure(const edgeship_tensor *tensor, size_t *size)
{
    *size = edgeship__item_bytes(tensor->dtype);
    if (*size == 0 || tensor->axes < 0 || tensor->axes > EDGESHIP_MAX_AXES)
        return 0;
    size_t largest = 1;
    for (int axis = 0; axis < tensor->axes; axis++) {
        size_t along = tensor->shape[axis] ? tensor->shape[axis] : 1;
        if (along > EDGESHIP__MAX_FRAME / largest)
            return 0;
        largest *= along;
        *size *= tensor->shape[axis];
    }
    return 1;
}

size_t edgeship_size_bytes(const edgeship_tensor *tensor)
{
    size_t size = 0;
    return edgeship__measure(tensor, &size) ? size : 0;
}

/* ---- writing MessagePack ---- */

static void edgeship__byte(edgeship__frame *frame, unsigned value)
{
    if (frame->used < EDGESHIP__HEAD)
        frame->head[frame->used] = (unsigned char)value;
    frame->used++; /* past the end: noticed once, when the frame is finished */
}

static void edgeship__big_endian(edgeship__frame *frame, unsigned tag, uint64_t value, int bytes)
{
    edgeship__byte(frame, tag);
    for (int shift = 8 * (bytes - 1); shift >= 0; shift -= 8)
        edgeship__byte(frame, (unsigned)(value >> shift) & 0xff);
}

static void edgeship__uint(edgeship__frame *frame, uint64_t value)
{
    if (value < 0x80)
        edgeship__byte(frame, (unsigned)value);
    else
        edgeship__big_endian(frame, 0xcf, value, 8);
}

static void edgeship__string(edgeship__frame *frame, const char *text)
{
    size_t length = strlen(text);
    if (length < 32)
        edgeship__byte(frame, 0xa0 | (unsigned)length);
    else
        edgeship__big_endian(frame, 0xdb, length, 4);
    for (size_t index = 0; index < length && frame->used <= EDGESHIP__HEAD; index++)
        edgeship__byte(frame, (unsigned char)text[index]);
}

static void edgeship__array(edgeship__frame *frame, size_t count)
{
    edgeship__byte(frame, count < 16 ? 0x90 | (unsigned)count : 0xdc);
    if (count >= 16) {
        edgeship__byte(frame, (unsigned)(count >> 8) & 0xff);
        edgeship__byte(frame, (unsigned)count & 0xff);
    }
}

static void edgeship__part(edgeship__frame *frame, const void *start, size_t size)
{
    frame->parts[frame->count].iov_base = (void *)(uintptr_t)start;
    frame->parts[frame->count++].iov_len = size;
    frame->total += size;
}

static void edgeship__cut(edgeship__frame *frame)
{
    if (frame->used > frame->cut && frame->used <= EDGESHIP__HEAD)
        edgeship__part(frame, frame->head + frame->cut, frame->used - frame->cut);
    frame->cut = frame->used;
}

/* ---- reading MessagePack: past the end everything is zero, and is_bad ---- */

static uint64_t edgeship__take(edgeship__reader *reader, int bytes)
{
    uint64_t value = 0;
    if (reader->end - reader->at < bytes) {
        reader->is_bad = 1;
        reader->at = reader->end;
        return 0;
    }
    while (bytes-- > 0)
        value = value << 8 | *reader->at++;
    return value;
}

static uint64_t edgeship__read_uint(edgeship__reader *reader)
{
    unsigned tag = (unsigned)edgeship__take(reader, 1);
    if (tag < 0x80)
        return tag;
    if (tag >= 0xcc && tag <= 0xcf)
        return edgeship__take(reader, 1 << (tag - 0xcc));
    reader->is_bad = 1;
    return 0;
}

static size_t edgeship__read_array(edgeship__reader *reader)
{
    unsigned tag = (unsigned)edgeship__take(reader, 1);
    if ((tag & 0xf0) == 0x90)
        return tag & 0x0f;
    if (tag == 0xdc || tag == 0xdd)
        return (size_t)edgeship__take(reader, tag == 0xdc ? 2 : 4);
    reader->is_bad = 1;
    return 0;
}

/* A text (is_text) or binary data. */
static edgeship__bytes edgeship__read_bytes(edgeship__reader *reader, int is_text)
{
    edgeship__bytes found = {NULL, 0};
    unsigned tag = (unsigned)edgeship__take(reader, 1), first = is_text ? 0xd9 : 0xc4;
    if (is_text && (tag & 0xe0) == 0xa0)
        found.size = tag & 0x1f;
    else if (tag >= first && tag <= first + 2)
        found.size = (size_t)edgeship__take(reader, 1 << (tag - first));
    else
        reader->is_bad = 1;
    if (reader->is_bad || (size_t)(reader->end - reader->at) < found.size) {
        reader->is_bad = 1;
        found.size = 0;
    }
    found.start = reader->at;
    reader->at += found.size;
    return found;
}

/* ---- the connection ---- */

static void edgeship__disconnect(edgeship_client *client)
{
    if (client->fd >= 0)
        close(client->fd);
    client->fd = -1;
    client->memory_is_passed = 0;
}

static void edgeship__forget_memory(edgeship_client *client)
{
    if (client->memory != NULL)
        munmap(client->memory, 2 * client->memory_half);
    if (client->memory_fd >= 0)
        close(client->memory_fd);
    client->memory = NULL;
    client->memory_fd = -1;
    client->memory_half = 0;
    client->memory_is_passed = 0;
}

static int edgeship__connect(edgeship_client *client)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    double timeout_s = client->timeout_s > 0.001 ? client->timeout_s : 0.001;
    struct timeval limit = {.tv_sec = (time_t)timeout_s};
    int buffer_bytes = 1 << 20;
    limit.tv_usec = (suseconds_t)((timeout_s - (double)limit.tv_sec) * 1e6);
    memcpy(address.sun_path, client->path, sizeof address.sun_path);
    client->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (client->fd < 0)
        return 0;
    setsockopt(client->fd, SOL_SOCKET, SO_SNDBUF, &buffer_bytes, sizeof buffer_bytes);
    setsockopt(client->fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    setsockopt(client->fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    return connect(client->fd, (struct sockaddr *)&address, sizeof address) == 0;
}

/* Sends the frame, with the shared memory's descriptor where it was not passed yet. */
static int edgeship__send(edgeship_client *client, const edgeship__frame *frame, int is_shared)
{
    struct iovec parts[EDGESHIP__PARTS];
    union { struct cmsghdr header; char space[CMSG_SPACE(sizeof(int))]; } ancillary = {.space = {0}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = (size_t)frame->count};
    memcpy(parts, frame->parts, sizeof parts);
    if (is_shared && !client->memory_is_passed) {
        message.msg_control = ancillary.space;
        message.msg_controllen = sizeof ancillary.space;
        ancillary.header.cmsg_level = SOL_SOCKET;
        ancillary.header.cmsg_type = SCM_RIGHTS;
        ancillary.header.cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(&ancillary.header), &client->memory_fd, sizeof(int));
    }
    while (message.msg_iovlen > 0) {
        ssize_t sent = sendmsg(client->fd, &message, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent < 0)
            return 0;
        message.msg_control = NULL;
        message.msg_controllen = 0;
        while (message.msg_iovlen > 0 && (size_t)sent >= message.msg_iov->iov_len) {
            sent -= (ssize_t)message.msg_iov->iov_len;
            message.msg_iov++;
            message.msg_iovlen--;
        }
        if (message.msg_iovlen > 0) {
            message.msg_iov->iov_base = (char *)message.msg_iov->iov_base + sent;
            message.msg_iov->iov_len -= (size_t)sent;
        }
    }
    client->memory_is_passed |= is_shared;
    return 1;
}

/* Makes a buffer at least so large; what is in it stays. */
static int edgeship__grow(unsigned char **buffer, size_t *size, size_t wanted)
{
    if (*size >= wanted)
        return 1;
    unsigned char *larger = aligned_alloc(EDGESHIP__ALIGNMENT, (wanted + 4095) / 4096 * 4096);
    if (larger == NULL)
        return 0;
    if (*buffer != NULL)
        memcpy(larger, *buffer, *size);
    free(*buffer);
    *buffer = larger;
    *size = (wanted + 4095) / 4096 * 4096;
    return 1;
}

/* Whether looking is worth its price: as edgeship_agent/serving/looking.py decides. */
static int edgeship__looks(edgeship_client *client, double now_s)
{
    cpu_set_t cores;
    if (client->spin_us <= 0.0)
        return 0;
    if (now_s - client->answered_s > 10e-6 * client->spin_us)
        client->is_looking = client->short_waits = 0;
    if (client->is_looking && (sched_getaffinity(0, sizeof cores, &cores) != 0 || CPU_COUNT(&cores) < 2))
        client->is_looking = 0;
    return client->is_looking;
}

/* Takes how long an answer was waited for; who slept saw it later than it came. */
static void edgeship__waited(edgeship_client *client, double waited_s)
{
    double longest_s = client->spin_us * (client->is_looking ? 1e-6 : 2e-6);
    int is_short = waited_s <= longest_s, needed = client->short_waits_needed;
    if (client->is_looking)
        needed = is_short ? needed / 2 : needed * 2;
    client->short_waits_needed = needed < 2 ? 2 : needed > 64 ? 64 : needed;
    client->short_waits = is_short ? client->short_waits + (client->short_waits < 64) : 0;
    client->is_looking = client->short_waits >= client->short_waits_needed;
}

/* One whole frame into client->received; 1 for a frame, 0 for a connection that is gone, -1 for no frame. */
static int edgeship__receive(edgeship_client *client, size_t *length)
{
    size_t filled = 0, wanted = 4;
    double started_s = edgeship__now_s();
    double spin_until_s = edgeship__looks(client, started_s) ? started_s + client->spin_us * 1e-6 : 0.0;
    if (!edgeship__grow(&client->received, &client->received_size, 65536))
        return -1;
    while (filled < wanted) {
        int is_spinning = filled == 0 && spin_until_s > 0.0 && edgeship__now_s() < spin_until_s;
        ssize_t count = recv(client->fd, client->received + filled, client->received_size - filled - 1,
                             is_spinning ? MSG_DONTWAIT : 0);
        if (count < 0 && errno == EINTR)
            continue;
        if (count < 0 && is_spinning && (errno == EAGAIN || errno == EWOULDBLOCK)) {
            sched_yield(); /* the agent may be waiting for this very core */
            continue;
        }
        if (count <= 0) {
            if (count == 0)
                errno = ECONNRESET;
            return 0;
        }
        if (filled == 0) {
            client->answered_s = edgeship__now_s();
            edgeship__waited(client, client->answered_s - started_s);
        }
        filled += (size_t)count;
        if (wanted == 4 && filled >= 4) {
            const unsigned char *head = client->received;
            *length = (size_t)head[0] | (size_t)head[1] << 8 | (size_t)head[2] << 16 | (size_t)head[3] << 24;
            wanted = 4 + *length;
            if (*length == 0 || *length > EDGESHIP__MAX_FRAME ||
                !edgeship__grow(&client->received, &client->received_size, wanted + 2))
                return -1;
        }
    }
    return filled == wanted ? 1 : -1;
}

/* ---- the request ---- */

static int edgeship__reserve(edgeship_client *client, size_t size)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    if (client->memory_half >= size)
        return 1;
    edgeship__forget_memory(client);
    size_t half = (size + page - 1) / page * page;
    client->memory_fd = memfd_create("edgeship", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (client->memory_fd < 0 || ftruncate(client->memory_fd, (off_t)(2 * half)) != 0 ||
        fcntl(client->memory_fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0)
        return 0;
    void *place = mmap(NULL, 2 * half, PROT_READ | PROT_WRITE, MAP_SHARED, client->memory_fd, 0);
    if (place == MAP_FAILED)
        return 0;
    client->memory = place;
    client->memory_half = half;
    return 1;
}

static void edgeship__tensor(edgeship__frame *frame, const edgeship_tensor *tensor)
{
    edgeship__array(frame, 4);
    edgeship__string(frame, tensor->name);
    edgeship__string(frame, tensor->dtype);
    edgeship__array(frame, (size_t)tensor->axes);
    for (int axis = 0; axis < tensor->axes; axis++)
        edgeship__uint(frame, tensor->shape[axis]);
}

static void edgeship__begin(edgeship__frame *frame)
{
    frame->cut = frame->total = 0;
    frame->count = 0;
    frame->used = 4; /* the length goes there when it is known */
}

/* 0 where the names were too long. */
static int edgeship__finish(edgeship__frame *frame)
{
    edgeship__cut(frame);
    if (frame->used > EDGESHIP__HEAD)
        return 0;
    for (int index = 0; index < 4; index++)
        frame->head[index] = (unsigned char)((frame->total - 4) >> (8 * index) & 0xff);
    return 1;
}

/* Writes the request; the application's data is sent from where it lies, or copied into the shared memory. */
static int edgeship__request(edgeship_client *client, edgeship__frame *frame, const char *model,
                             const edgeship_tensor *inputs, int count, double deadline_ms, const char *split_key,
                             int is_shared)
{
    size_t offset = 0;
    if (is_shared) {
        client->memory_turn = !client->memory_turn;
        offset = client->memory_turn ? client->memory_half : 0;
    }
    edgeship__begin(frame);
    edgeship__array(frame, 6);
    edgeship__string(frame, is_shared ? "infer_shared" : "infer");
    edgeship__uint(frame, client->request_id);
    edgeship__string(frame, model);
    edgeship__array(frame, (size_t)count);
    for (int index = 0; index < count; index++) {
        size_t size = edgeship_size_bytes(&inputs[index]);
        edgeship__tensor(frame, &inputs[index]);
        if (is_shared) {
            if (size > 0 && client->memory + offset != inputs[index].data)
                memmove(client->memory + offset, inputs[index].data, size);
            edgeship__uint(frame, offset);
            offset += (size + EDGESHIP__ALIGNMENT - 1) / EDGESHIP__ALIGNMENT * EDGESHIP__ALIGNMENT;
        } else {
            edgeship__big_endian(frame, 0xc6, size, 4);
            edgeship__cut(frame);
            edgeship__part(frame, inputs[index].data, size);
        }
    }
    edgeship__uint(frame, (uint64_t)(deadline_ms * 1000.0 + 0.5));
    edgeship__string(frame, split_key);
    return edgeship__finish(frame);
}

/* ---- the answer ---- */

static int edgeship__read_tensor(edgeship__reader *reader, edgeship_tensor *tensor, edgeship__bytes texts[2],
                                 edgeship__bytes *data)
{
    if (edgeship__read_array(reader) != 4) /* a later version's tensors would be another kind of frame */
        return 0;
    texts[0] = edgeship__read_bytes(reader, 1);
    texts[1] = edgeship__read_bytes(reader, 1);
    size_t axes = edgeship__read_array(reader);
    if (axes > EDGESHIP_MAX_AXES)
        return 0;
    tensor->axes = (int)axes;
    for (size_t axis = 0; axis < axes; axis++)
        tensor->shape[axis] = (size_t)edgeship__read_uint(reader);
    *data = edgeship__read_bytes(reader, 0);
    return !reader->is_bad;
}

/* Ends a text with a zero, over the first byte of what follows it: only when all is read. */
static const char *edgeship__text(edgeship__bytes text)
{
    text.start[text.size] = 0;
    return (const char *)text.start;
}

static int edgeship__answer(edgeship_client *client, size_t length, edgeship_answer *answer)
{
    edgeship__reader reader = {client->received + 4, client->received + 4 + length, 0};
    edgeship__bytes texts[6], names[EDGESHIP_MAX_TENSORS][2], data[EDGESHIP_MAX_TENSORS];
    size_t needed = 0;
    int bad = edgeship__fail(client, EDGESHIP_BAD_ANSWER, "what came back is no answer");
    size_t fields = edgeship__read_array(&reader);
    if (fields < 9)
        return bad;
    edgeship__bytes kind = edgeship__read_bytes(&reader, 1);
    if (kind.size != 6 || memcmp(kind.start, "answer", 6) != 0 || edgeship__read_uint(&reader) != client->request_id)
        return bad;
    for (int index = 0; index < 4; index++)
        texts[index] = edgeship__read_bytes(&reader, 1);
    answer->latency_us = (int64_t)edgeship__read_uint(&reader);
    size_t count = edgeship__read_array(&reader);
    if (reader.is_bad || count > EDGESHIP_MAX_TENSORS)
        return bad;
    for (size_t index = 0; index < count; index++) {
        if (!edgeship__read_tensor(&reader, &answer->tensors[index], names[index], &data[index]))
            return bad;
        needed += (data[index].size + EDGESHIP__ALIGNMENT - 1) / EDGESHIP__ALIGNMENT * EDGESHIP__ALIGNMENT;
    }
    texts[4] = edgeship__read_bytes(&reader, 1);
    if (fields > 9) /* an older agent names no arm */
        texts[5] = edgeship__read_bytes(&reader, 1);
    if (reader.is_bad || !edgeship__grow(&client->values, &client->values_size, needed + 1))
        return bad;
    unsigned char *place = client->values;
    for (size_t index = 0; index < count; index++) {
        edgeship_tensor *tensor = &answer->tensors[index];
        memcpy(place, data[index].start, data[index].size);
        tensor->data = place;
        place += (data[index].size + EDGESHIP__ALIGNMENT - 1) / EDGESHIP__ALIGNMENT * EDGESHIP__ALIGNMENT;
        tensor->name = edgeship__text(names[index][0]);
        tensor->dtype = edgeship__text(names[index][1]);
        if (edgeship_size_bytes(tensor) != data[index].size)
            return bad;
    }
    answer->count = (int)count;
    answer->prediction_id = edgeship__text(texts[0]);
    answer->model = edgeship__text(texts[1]);
    answer->version = edgeship__text(texts[2]);
    answer->release_digest = edgeship__text(texts[3]);
    answer->arm = fields > 9 ? edgeship__text(texts[5]) : "";
    client->error[0] = 0;
    if (texts[4].size > 0)
        return edgeship__fail(client, EDGESHIP_REFUSED, "%s", edgeship__text(texts[4]));
    return EDGESHIP_OK;
}

/* The answer to a label or an outcome. */
static int edgeship__noted(edgeship_client *client, size_t length, int *is_known)
{
    edgeship__reader reader = {client->received + 4, client->received + 4 + length, 0};
    int bad = edgeship__fail(client, EDGESHIP_BAD_ANSWER, "what came back is no answer");
    if (edgeship__read_array(&reader) < 4)
        return bad;
    edgeship__bytes kind = edgeship__read_bytes(&reader, 1);
    if (kind.size != 5 || memcmp(kind.start, "noted", 5) != 0 || edgeship__read_uint(&reader) != client->request_id)
        return bad;
    unsigned known = (unsigned)edgeship__take(&reader, 1); /* 0xc3: true */
    edgeship__bytes error = edgeship__read_bytes(&reader, 1);
    if (reader.is_bad || (known != 0xc2 && known != 0xc3))
        return bad;
    client->error[0] = 0;
    if (error.size > 0)
        return edgeship__fail(client, EDGESHIP_REFUSED, "%s", edgeship__text(error));
    if (is_known != NULL)
        *is_known = known == 0xc3;
    return EDGESHIP_OK;
}

/* ---- what the application calls ---- */

int edgeship_open(edgeship_client *client, const char *socket_path, double timeout_s)
{
    memset(client, 0, sizeof *client);
    client->fd = client->memory_fd = -1;
    client->timeout_s = timeout_s;
    client->spin_us = EDGESHIP__LONGEST_LOOK_US;
    if (strlen(socket_path) >= sizeof client->path)
        return edgeship__fail(client, EDGESHIP_BAD_CALL, "the socket's path has more than 107 bytes: %s", socket_path);
    strcpy(client->path, socket_path);
    return EDGESHIP_OK;
}

void edgeship_spin(edgeship_client *client, double spin_us)
{
    client->spin_us = spin_us;
}

/* Sends a frame until it is answered; answer is NULL for a label or an outcome. */
static int edgeship__exchange(edgeship_client *client, const edgeship__frame *frame, int is_shared,
                              edgeship_answer *answer, int *is_known)
{
    double give_up_s = edgeship__now_s() + client->timeout_s;
    for (;;) {
        size_t length = 0;
        int came = 0;
        if ((client->fd >= 0 || edgeship__connect(client)) && edgeship__send(client, frame, is_shared))
            came = edgeship__receive(client, &length);
        if (came > 0) {
            int code = answer == NULL ? edgeship__noted(client, length, is_known)
                                      : edgeship__answer(client, length, answer);
            if (code == EDGESHIP_BAD_ANSWER)
                edgeship__disconnect(client);
            return code;
        }
        int cause = errno;
        edgeship__disconnect(client);
        if (came < 0)
            return edgeship__fail(client, EDGESHIP_BAD_ANSWER, "what came back is no answer");
        if (cause == EAGAIN || cause == EWOULDBLOCK) {
            edgeship__forget_memory(client); /* the agent may still read it */
            return edgeship__fail(client, EDGESHIP_UNREACHABLE, "no answer within %g s", client->timeout_s);
        }
        /* closed for a switch of models, or a worker that died: another one takes its place */
        if (edgeship__now_s() + 0.005 > give_up_s)
            return edgeship__fail(client, EDGESHIP_UNREACHABLE, "the agent cannot be reached: %s", strerror(cause));
        nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
    }
}

/* Whether the inputs can be sent; how much shared memory they take goes to *total. */
static int edgeship__check_inputs(edgeship_client *client, const edgeship_tensor *inputs, int count, size_t *total)
{
    client->error[0] = 0;
    if (client->path[0] == 0)
        return edgeship__fail(client, EDGESHIP_BAD_CALL, "the client is not open");
    if (count < 0 || count > EDGESHIP_MAX_TENSORS)
        return edgeship__fail(client, EDGESHIP_BAD_CALL, "at most %d inputs", EDGESHIP_MAX_TENSORS);
    for (int index = 0; index < count; index++) {
        size_t size = 0;
        if (inputs[index].name == NULL || !edgeship__measure(&inputs[index], &size))
            return edgeship__fail(client, EDGESHIP_BAD_CALL, "input %d: no name, an unknown dtype, or too large", index);
        *total += (size + EDGESHIP__ALIGNMENT - 1) / EDGESHIP__ALIGNMENT * EDGESHIP__ALIGNMENT;
    }
    if (*total > EDGESHIP__MAX_FRAME)
        return edgeship__fail(client, EDGESHIP_BAD_CALL, "a request of more than 64 MiB");
    return EDGESHIP_OK;
}

int edgeship_room(edgeship_client *client, edgeship_tensor *inputs, int count)
{
    size_t total = 0;
    int code = edgeship__check_inputs(client, inputs, count, &total);
    if (code != EDGESHIP_OK)
        return code;
    if (!edgeship__reserve(client, total > 0 ? total : 1))
        return edgeship__fail(client, EDGESHIP_UNREACHABLE, "no shared memory: %s", strerror(errno));
    size_t offset = client->memory_turn ? 0 : client->memory_half; /* of the next turn */
    for (int index = 0; index < count; index++) {
        size_t size = edgeship_size_bytes(&inputs[index]);
        inputs[index].data = client->memory + offset;
        offset += (size + EDGESHIP__ALIGNMENT - 1) / EDGESHIP__ALIGNMENT * EDGESHIP__ALIGNMENT;
    }
    return EDGESHIP_OK;
}

int edgeship_infer(edgeship_client *client, const char *model, const edgeship_tensor *inputs, int count,
                   double deadline_ms, edgeship_answer *answer)
{
    return edgeship_infer_split(client, model, inputs, count, deadline_ms, "", answer);
}

int edgeship_infer_split(edgeship_client *client, const char *model, const edgeship_tensor *inputs, int count,
                         double deadline_ms, const char *split_key, edgeship_answer *answer)
{
    edgeship__frame frame;
    size_t total = 0;
    memset(answer, 0, sizeof *answer);
    int code = edgeship__check_inputs(client, inputs, count, &total);
    if (code != EDGESHIP_OK)
        return code;
    if (!(deadline_ms >= 0.0 && deadline_ms < 1e12))
        return edgeship__fail(client, EDGESHIP_BAD_CALL, "a deadline is 0 or more milliseconds");
    int is_shared = total > EDGESHIP__SHARED_ABOVE;
    if (is_shared && !edgeship__reserve(client, total))
        return edgeship__fail(client, EDGESHIP_UNREACHABLE, "no shared memory: %s", strerror(errno));
    client->request_id++;
    if (!edgeship__request(client, &frame, model, inputs, count, deadline_ms, split_key, is_shared))
        return edgeship__fail(client, EDGESHIP_BAD_CALL, "names that are too long");
    return edgeship__exchange(client, &frame, is_shared, answer, NULL);
}

/* Begins a label or an outcome; is_known is false until the agent says otherwise. */
static int edgeship__begin_note(edgeship_client *client, edgeship__frame *frame, const char *tag, size_t fields,
                                int *is_known)
{
    client->error[0] = 0;
    if (is_known != NULL)
        *is_known = 0;
    if (client->path[0] == 0)
        return edgeship__fail(client, EDGESHIP_BAD_CALL, "the client is not open");
    client->request_id++;
    edgeship__begin(frame);
    edgeship__array(frame, fields);
    edgeship__string(frame, tag);
    edgeship__uint(frame, client->request_id);
    return EDGESHIP_OK;
}

static int edgeship__end_note(edgeship_client *client, edgeship__frame *frame, int *is_known)
{
    if (!edgeship__finish(frame))
        return edgeship__fail(client, EDGESHIP_BAD_CALL, "names that are too long");
    return edgeship__exchange(client, frame, 0, NULL, is_known);
}

int edgeship_label(edgeship_client *client, const char *prediction_id, uint32_t label, int *is_known)
{
    edgeship__frame frame;
    int code = edgeship__begin_note(client, &frame, "label", 4, is_known);
    if (code != EDGESHIP_OK)
        return code;
    edgeship__string(&frame, prediction_id);
    edgeship__uint(&frame, label);
    return edgeship__end_note(client, &frame, is_known);
}

int edgeship_label_name(edgeship_client *client, const char *prediction_id, const char *label, int *is_known)
{
    edgeship__frame frame;
    int code = edgeship__begin_note(client, &frame, "label", 4, is_known);
    if (code != EDGESHIP_OK)
        return code;
    edgeship__string(&frame, prediction_id);
    edgeship__string(&frame, label);
    return edgeship__end_note(client, &frame, is_known);
}

int edgeship_outcome(edgeship_client *client, const char *name, double value, const char *prediction_id,
                     int *is_known)
{
    edgeship__frame frame;
    uint64_t bits;
    int code = edgeship__begin_note(client, &frame, "outcome", 5, is_known);
    if (code != EDGESHIP_OK)
        return code;
    memcpy(&bits, &value, sizeof bits);
    edgeship__string(&frame, name);
    edgeship__big_endian(&frame, 0xcb, bits, 8);
    edgeship__string(&frame, prediction_id);
    return edgeship__end_note(client, &frame, is_known);
}

const char *edgeship_error(const edgeship_client *client)
{
    return client->error;
}

void edgeship_close(edgeship_client *client)
{
    edgeship__disconnect(client);
    edgeship__forget_memory(client);
    free(client->received);
    free(client->values);
    client->received = client->values = NULL;
    client->received_size = client->values_size = 0;
}

#endif /* EDGESHIP_IMPLEMENTED */
#endif /* EDGESHIP_IMPLEMENTATION */
