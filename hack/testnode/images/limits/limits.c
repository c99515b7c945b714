/*
 * The strictest judge of "in time": the first thing that this program does is to
 * read its own memory.high and memory.min, before anything else of it runs. Then
 * it prints them, and sleeps, or exits with the status that it is given.
 */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void first(const char *path, char *value, size_t size)
{
	int fd = open(path, O_RDONLY);
	ssize_t n = fd < 0 ? -1 : read(fd, value, size - 1);

	value[n < 0 ? 0 : n] = '\0';
	value[strcspn(value, "\n")] = '\0';
	close(fd);
}

int main(int argc, char **argv)
{
	/* Paths of a private cgroup namespace, the default of cgroup v2. */
	static char high[32], min[32];
	sigset_t set;
	int sig;

	first("/sys/fs/cgroup/memory.high", high, sizeof(high));
	first("/sys/fs/cgroup/memory.min", min, sizeof(min));
	printf("high %s min %s\n", high, min);
	fflush(stdout);
	if (argc > 1)
		return atoi(argv[1]);
	/* The kernel spares a PID 1 signals that it does not handle. */
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigprocmask(SIG_BLOCK, &set, NULL);
	return sigwait(&set, &sig);
}
