/* SPDX-License-Identifier: MIT */
/* Frames over a real socket pair: whole, in pieces, too long, with file descriptors. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "proto/dsv4.pb-c.h"
#include "proto/frame.h"

struct pair {
    int a, b;
    struct frame_reader r;
    struct frame_writer w;
};

static int setup(void **state)
{
    static struct pair p;
    int fds[2];

    p.r = FRAME_READER_INIT;
    p.w = FRAME_WRITER_INIT;
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) < 0)
        return -1;
    p.a = fds[0];
    p.b = fds[1];
    *state = &p;
    return 0;
}

static int teardown(void **state)
{
    struct pair *p = *state;

    frame_reader_deinit(&p->r);
    frame_writer_deinit(&p->w);
    close(p->a);
    if (p->b >= 0)
        close(p->b);
    return 0;
}

static void send_bytes(struct pair *p, const void *data, size_t n)
{
    assert_int_equal(send(p->a, data, n, MSG_NOSIGNAL), n);
}

/* Queue a Text message of n bytes 'x'. */
static void queue_text(struct pair *p, size_t n, int fd)
{
    Dsv4__V1__Text text = DSV4__V1__TEXT__INIT;
    _cleanup_free_ uint8_t *data = malloc(n + 1);

    assert_non_null(data);
    memset(data, 'x', n);
    text.utf8 = (ProtobufCBinaryData){.len = n, .data = data};
    assert_int_equal(frame_queue(&p->w, &text.base, fd), 0);
}

static void a_frame_in_pieces(void **state)
{
    struct pair *p = *state;
    const uint8_t *m;
    size_t n;
    struct fail f = FAIL_INIT;
    static const char bytes[] = {3, 0, 0, 0, 'a', 'b', 'c', 1, 0, 0, 0, 'd'};

    for (size_t i = 0; i < 7; i++) {
        assert_int_equal(frame_next(&p->r, &m, &n, &f), 0);
        assert_int_equal(frame_partial(&p->r), i > 0);
        send_bytes(p, bytes + i, 1);
        assert_int_equal(frame_receive(&p->r, p->b), 1);
    }
    assert_int_equal(frame_next(&p->r, &m, &n, &f), 1);
    assert_int_equal(n, 3);
    assert_memory_equal(m, "abc", 3);
    assert_false(frame_partial(&p->r));
    send_bytes(p, bytes + 7, 5);
    assert_int_equal(frame_receive(&p->r, p->b), -EAGAIN); /* not before the first is done with */
    frame_done(&p->r);
    assert_int_equal(frame_receive(&p->r, p->b), 5);
    assert_int_equal(frame_next(&p->r, &m, &n, &f), 1);
    assert_memory_equal(m, "d", 1);
    frame_done(&p->r);
    assert_int_equal(frame_receive(&p->r, p->b), -EAGAIN);
}

static void two_frames_in_one_write(void **state)
{
    struct pair *p = *state;
    const uint8_t *m;
    size_t n;

    send_bytes(p, "\2\0\0\0ab\1\0\0\0c\5\0\0\0de", 17);
    assert_int_equal(frame_receive(&p->r, p->b), 6);
    assert_int_equal(frame_next(&p->r, &m, &n, NULL), 1);
    frame_done(&p->r);
    assert_int_equal(frame_receive(&p->r, p->b), 5);
    assert_int_equal(frame_next(&p->r, &m, &n, NULL), 1);
    assert_memory_equal(m, "c", 1);
    frame_done(&p->r);
    assert_int_equal(frame_receive(&p->r, p->b), 6);
    assert_int_equal(frame_next(&p->r, &m, &n, NULL), 0);
    assert_true(frame_partial(&p->r));
    close(p->a);
    p->a = dup(p->b);
    assert_int_equal(frame_receive(&p->r, p->b), 0);
}

static void length_zero(void **state)
{
    struct pair *p = *state;
    const uint8_t *m;
    size_t n;
    struct fail f = FAIL_INIT;

    send_bytes(p, "\0\0\0\0more", 8);
    assert_int_equal(frame_receive(&p->r, p->b), 4);
    assert_int_equal(frame_next(&p->r, &m, &n, &f), -EBADMSG);
    assert_string_equal(f.code, "FRAME_EMPTY");
    assert_int_equal(frame_receive(&p->r, p->b), -EBADMSG); /* there is no way on */
}

static void length_too_large_allocates_nothing(void **state)
{
    struct pair *p = *state;
    const uint8_t *m;
    size_t n;
    struct fail f = FAIL_INIT;

    send_bytes(p, "\377\377\377\377x", 5);
    assert_int_equal(frame_receive(&p->r, p->b), 4);
    assert_int_equal(frame_next(&p->r, &m, &n, &f), -EMSGSIZE);
    assert_string_equal(f.code, "FRAME_TOO_LARGE");
    assert_int_equal(f.limit, FRAME_MAX);
    assert_int_equal(f.value, 4294967295);
    assert_true(p->r.in.capacity < 1024);
    assert_int_equal(frame_receive(&p->r, p->b), -EMSGSIZE);
}

static void announced_length_is_not_believed(void **state)
{
    struct pair *p = *state;

    send_bytes(p, "\0\0\100\0x", 5); /* 4 MiB announced, 1 byte sent */
    assert_int_equal(frame_receive(&p->r, p->b), 5);
    assert_true(frame_partial(&p->r));
    assert_true(p->r.in.capacity <= 256u << 10);
}

static void the_largest_frame_goes_through(void **state)
{
    struct pair *p = *state;
    const uint8_t *m;
    size_t n;
    int done = 0;

    queue_text(p, FRAME_MAX - 5, -1); /* tag and four bytes of length */
    assert_int_equal(frame_pending(&p->w), FRAME_MAX + FRAME_HEADER);
    while (!done) {
        int r = frame_send(&p->w, p->a);
        assert_true(r >= 0);
        assert_true(frame_receive(&p->r, p->b) > 0);
        done = frame_next(&p->r, &m, &n, NULL);
    }
    assert_int_equal(n, FRAME_MAX);
    assert_int_equal(m[FRAME_MAX - 1], 'x');
    frame_done(&p->r);
    assert_int_equal(p->r.in.capacity, 0); /* 4 MiB are not kept */
    assert_int_equal(frame_pending(&p->w), 0);
    assert_int_equal(p->w.out.capacity, 0);

    Dsv4__V1__Text text = DSV4__V1__TEXT__INIT;
    _cleanup_free_ uint8_t *data = calloc(1, FRAME_MAX);
    text.utf8 = (ProtobufCBinaryData){.len = FRAME_MAX, .data = data};
    assert_int_equal(frame_queue(&p->w, &text.base, -1), -EMSGSIZE);
}

static ino_t inode(int fd)
{
    struct stat st;

    assert_int_equal(fstat(fd, &st), 0);
    return st.st_ino;
}

static void fds_stay_with_their_frames(void **state)
{
    struct pair *p = *state;
    const uint8_t *m;
    size_t n;
    int one[2], two[2];

    assert_int_equal(pipe2(one, O_CLOEXEC), 0);
    assert_int_equal(pipe2(two, O_CLOEXEC), 0);
    queue_text(p, 10, -1);
    queue_text(p, 11, one[0]);
    queue_text(p, 12, -1);
    queue_text(p, 13, two[0]);
    queue_text(p, 14, -1);
    assert_int_equal(frame_send(&p->w, p->a), 1);
    for (size_t i = 10; i < 15; i++) {
        assert_true(frame_receive(&p->r, p->b) > 0);
        assert_int_equal(frame_next(&p->r, &m, &n, NULL), 1);
        assert_int_equal(n, i + 2);
        int fd = frame_take_fd(&p->r);
        if (i == 11 || i == 13) {
            assert_int_equal(inode(fd), inode(i == 11 ? one[0] : two[0]));
            close(fd);
        } else {
            assert_int_equal(fd, -ENOENT);
        }
        assert_int_equal(frame_take_fd(&p->r), -ENOENT);
        frame_done(&p->r);
    }
    for (int i = 0; i < 2; i++) {
        close(one[i]);
        close(two[i]);
    }
}

/* Fds that nobody takes are closed: the write end sees that no reader is left. */
static void untaken_fds_are_closed(void **state)
{
    struct pair *p = *state;
    int pipes[2];
    const uint8_t *m;
    size_t n;

    assert_int_equal(pipe2(pipes, O_CLOEXEC | O_NONBLOCK), 0);
    queue_text(p, 1, pipes[0]);
    assert_int_equal(frame_send(&p->w, p->a), 1);
    close(pipes[0]);
    assert_true(frame_receive(&p->r, p->b) > 0);
    assert_int_equal(frame_next(&p->r, &m, &n, NULL), 1);
    assert_int_equal(write(pipes[1], "x", 1), 1);
    frame_done(&p->r);
    assert_int_equal(write(pipes[1], "x", 1), -1);
    assert_int_equal(errno, EPIPE);
    close(pipes[1]);
}

static void too_many_fds_are_dropped(void **state)
{
    struct pair *p = *state;
    union {
        char space[CMSG_SPACE(sizeof(int) * 20)];
        struct cmsghdr align;
    } control = {0};
    struct iovec iov = {.iov_base = (char[]){1, 0, 0, 0, 'x'}, .iov_len = 5};
    struct msghdr mh = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
    struct cmsghdr *c = CMSG_FIRSTHDR(&mh);
    int fds[20];
    const uint8_t *m;
    size_t n;

    for (int i = 0; i < 20; i++)
        fds[i] = p->a;
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(sizeof(fds));
    memcpy(CMSG_DATA(c), fds, sizeof(fds));
    assert_int_equal(sendmsg(p->a, &mh, 0), 5);
    int before = dup(p->a);
    close(before);
    assert_int_equal(frame_receive(&p->r, p->b), 5);
    assert_int_equal(frame_next(&p->r, &m, &n, NULL), 1);
    assert_true(p->r.fds_dropped);
    assert_true(p->r.n_fds <= FRAME_FDS_MAX);
    frame_done(&p->r);
    assert_false(p->r.fds_dropped);
    int after = dup(p->a);
    close(after);
    assert_int_equal(before, after); /* none is left open */
}

static void nobody_reads(void **state)
{
    struct pair *p = *state;

    for (int i = 0; i < 64; i++)
        queue_text(p, 100000, -1);
    assert_int_equal(frame_send(&p->w, p->a), 0);
    size_t pending = frame_pending(&p->w);
    assert_true(pending > 0 && pending < 64 * 100010);
    close(p->b);
    p->b = -1;
    assert_int_equal(frame_send(&p->w, p->a), -EPIPE); /* no SIGPIPE either */
}

static void unsent_frames_are_dropped_whole(void **state)
{
    struct pair *p = *state;
    const uint8_t *m;
    size_t n, frames = 0;
    int r, fd = dup(p->a);

    for (int i = 0; i < 64; i++)
        queue_text(p, 100000, i % 2 ? fd : -1);
    close(fd);
    assert_int_equal(frame_send(&p->w, p->a), 0);
    frame_drop_unsent(&p->w);
    assert_true(frame_pending(&p->w) < 100010);
    queue_text(p, 7, -1);
    do {
        r = frame_send(&p->w, p->a);
        assert_true(r >= 0);
        while (frame_receive(&p->r, p->b) > 0)
            if (frame_next(&p->r, &m, &n, NULL) == 1) {
                assert_true(n == 9 || n == 100004);
                frames++;
                frame_done(&p->r);
            }
    } while (r == 0);
    assert_true(frames > 1 && frames < 64);
    assert_int_equal(p->w.n_fds, 0);
    frame_drop_unsent(&p->w); /* of nothing */
    static const uint8_t packed[] = {8, 1};
    assert_int_equal(frame_queue_packed(&p->w, packed, 2, -1), 0);
    assert_int_equal(frame_pending(&p->w), 6);
    frame_drop_unsent(&p->w);
    assert_int_equal(frame_pending(&p->w), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_frame_in_pieces, setup, teardown),
        cmocka_unit_test_setup_teardown(two_frames_in_one_write, setup, teardown),
        cmocka_unit_test_setup_teardown(length_zero, setup, teardown),
        cmocka_unit_test_setup_teardown(length_too_large_allocates_nothing, setup, teardown),
        cmocka_unit_test_setup_teardown(announced_length_is_not_believed, setup, teardown),
        cmocka_unit_test_setup_teardown(the_largest_frame_goes_through, setup, teardown),
        cmocka_unit_test_setup_teardown(fds_stay_with_their_frames, setup, teardown),
        cmocka_unit_test_setup_teardown(untaken_fds_are_closed, setup, teardown),
        cmocka_unit_test_setup_teardown(too_many_fds_are_dropped, setup, teardown),
        cmocka_unit_test_setup_teardown(unsent_frames_are_dropped_whole, setup, teardown),
        cmocka_unit_test_setup_teardown(nobody_reads, setup, teardown),
    };
    signal(SIGPIPE, SIG_IGN);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
