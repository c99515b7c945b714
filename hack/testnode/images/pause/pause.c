/*
 * The first process of every pod sandbox: it holds the pod's namespaces open
 * until the runtime ends it, and reaps whatever a shared PID namespace
 * leaves to it.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef VERSION
#define VERSION "test"
#endif

int main(int argc, char **argv)
{
	sigset_t set;
	int sig;

	if (argc == 2 && strcmp(argv[1], "-v") == 0) {
		printf("pause %s\n", VERSION);
		return 0;
	}
	if (getpid() != 1)
		fprintf(stderr, "pause: warning: not PID 1, orphans of the pod go to another process\n");

	/*
	 * Blocked signals are taken one by one by sigwaitinfo, so there is no
	 * handler and no race. The kernel drops an unblocked signal to a PID 1
	 * that has no handler for it; a blocked one stays pending.
	 */
	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGTERM);
	if (sigprocmask(SIG_BLOCK, &set, NULL) != 0) {
		perror("pause: block signals");
		return 1;
	}
	for (;;) {
		sig = sigwaitinfo(&set, NULL);
		if (sig == SIGINT || sig == SIGTERM)
			return 0;
		if (sig == SIGCHLD) {
			/* Signals coalesce: one SIGCHLD may stand for many. */
			while (waitpid(-1, NULL, WNOHANG) > 0)
				;
		} else if (sig < 0 && errno != EINTR) {
			perror("pause: wait for a signal");
			return 1;
		}
	}
}
