/* A queue of bytes between one writer and one reader, without locks.
 *
 * Two counters only ever grow. `head` is how many bytes were written since the start and belongs to
 * the writer; `tail` is how many were read and belongs to the reader. Their difference is what waits.
 * The size is a power of two, so that a counter is turned into a place in memory by masking, and the
 * counters may wrap around without harm, because unsigned subtraction wraps with them.
 */

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct ring {
    uint8_t *data;
    size_t size;              /* a power of two */
    _Atomic size_t head;      /* written by the producer only */
    _Atomic size_t tail;      /* written by the consumer only */
};

static bool is_power_of_two(size_t n)
{
    return n != 0 && (n & (n - 1)) == 0;
}

int ring_init(struct ring *ring, size_t size)
{
    if (!is_power_of_two(size))
        return -1;
    ring->data = malloc(size);
    if (ring->data == NULL)
        return -1;
    ring->size = size;
    atomic_init(&ring->head, 0);
    atomic_init(&ring->tail, 0);
    return 0;
}

void ring_free(struct ring *ring)
{
    free(ring->data);
    ring->data = NULL;
    ring->size = 0;
}

/* Copy into the ring, in two pieces where the end is reached. */
static void put_bytes(struct ring *ring, size_t at, const uint8_t *from, size_t count)
{
    size_t offset = at & (ring->size - 1);
    size_t first = ring->size - offset;

    if (first > count)
        first = count;
    memcpy(ring->data + offset, from, first);
    memcpy(ring->data, from + first, count - first);
}

static void get_bytes(const struct ring *ring, size_t at, uint8_t *to, size_t count)
{
    size_t offset = at & (ring->size - 1);
    size_t first = ring->size - offset;

    if (first > count)
        first = count;
    memcpy(to, ring->data + offset, first);
    memcpy(to + first, ring->data, count - first);
}

/* Write as much as there is room for; returns how much that was.
 *
 * The acquire on `tail` pairs with the reader's release: once we see that bytes were consumed, the
 * reader has really finished copying them out, and we may overwrite them.
 */
size_t ring_write(struct ring *ring, const void *from, size_t count)
{
    size_t head = atomic_load_explicit(&ring->head, memory_order_relaxed);
    size_t tail = atomic_load_explicit(&ring->tail, memory_order_acquire);
    size_t room = ring->size - (head - tail);

    if (count > room)
        count = room;
    put_bytes(ring, head, from, count);
    atomic_store_explicit(&ring->head, head + count, memory_order_release);
    return count;
}

/* Read at most `count` bytes; returns how many there were. */
size_t ring_read(struct ring *ring, void *to, size_t count)
{
    size_t tail = atomic_load_explicit(&ring->tail, memory_order_relaxed);
    size_t head = atomic_load_explicit(&ring->head, memory_order_acquire);
    size_t waiting = head - tail;

    if (count > waiting)
        count = waiting;
    get_bytes(ring, tail, to, count);
    atomic_store_explicit(&ring->tail, tail + count, memory_order_release);
    return count;
}

int main(void)
{
    struct ring ring;
    char out[16] = {0};
    int failures = 0;

    if (ring_init(&ring, 8) != 0) {
        fprintf(stderr, "out of memory\n");
        return 1;
    }
    failures += ring_write(&ring, "hello", 5) != 5;
    failures += ring_read(&ring, out, 3) != 3 || memcmp(out, "hel", 3) != 0;
    failures += ring_write(&ring, "world!", 6) != 6;     /* wraps */
    failures += ring_write(&ring, "x", 1) != 0;          /* full */
    failures += ring_read(&ring, out, sizeof out) != 8;
    failures += memcmp(out, "loworld!", 8) != 0;
    ring_free(&ring);
    printf("%d failures\n", failures);
    return failures != 0;
}
