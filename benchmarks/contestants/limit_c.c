/* The bare limit: K processes that each keep W children of /bin/true under way by posix_spawn, and wait.
   usage: limit_c COUNT SPAWNERS WINDOW DIR|-   (with DIR: a directory and two output files for each child) */
#define _GNU_SOURCE
#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

static void check(int failed, const char *what) {
    if (failed) {
        perror(what);
        _exit(1);
    }
}

static void start(const char *dir, int spawner, int number) {
    char *argv[] = {"/bin/true", NULL};
    posix_spawn_file_actions_t files;
    pid_t pid;
    check(posix_spawn_file_actions_init(&files) != 0, "file actions");
    if (strcmp(dir, "-") != 0) {
        char place[512], out[600], err[600];
        snprintf(place, sizeof place, "%s/%d-%d", dir, spawner, number);
        check(mkdir(place, 0700) != 0, "mkdir");
        snprintf(out, sizeof out, "%s/stdout", place);
        snprintf(err, sizeof err, "%s/stderr", place);
        check(posix_spawn_file_actions_addopen(&files, 1, out, O_WRONLY | O_CREAT | O_EXCL, 0600) != 0, "stdout");
        check(posix_spawn_file_actions_addopen(&files, 2, err, O_WRONLY | O_CREAT | O_EXCL, 0600) != 0, "stderr");
    }
    check(posix_spawn(&pid, argv[0], &files, NULL, argv, environ) != 0, "posix_spawn");
    posix_spawn_file_actions_destroy(&files);
}

static void spawner(int id, int count, int window, const char *dir) {
    int begun = 0, ended = 0, status;
    while (ended < count) {
        while (begun < count && begun - ended < window) start(dir, id, begun++);
        check(wait(&status) < 0 || status != 0, "wait");
        ended++;
    }
    _exit(0);
}

int main(int argc, char **argv) {
    int count, spawners, window, status, failed = 0;
    if (argc != 5) return 2;
    count = atoi(argv[1]), spawners = atoi(argv[2]), window = atoi(argv[3]);
    for (int id = 0; id < spawners; id++) {
        int share = count / spawners + (id < count % spawners);
        pid_t pid = fork();
        check(pid < 0, "fork");
        if (pid == 0) spawner(id, share, window, argv[4]);
    }
    while (wait(&status) > 0) failed |= status;
    return failed != 0;
}
