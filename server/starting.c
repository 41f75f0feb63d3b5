/*
 * The one who watches a start: a server with a long journal behind its picture needs minutes, and must not be killed
 * for that. systemd gives more time for as long as there is progress, so that a start that hangs still fails.
 */
#include "server/starting.h"

#include <string.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include "server/log.h"

enum { LOOK_S = 1, LOOKS_A_LINE = 5, MORE_TIME_S = 60 };

static void tell(const struct service_progress *p)
{
	sd_notifyf(0, "EXTEND_TIMEOUT_USEC=%lld\nSTATUS=%s: revision %llu of %llu", MORE_TIME_S * 1000000LL, p->step,
		   (unsigned long long)p->replayed, (unsigned long long)p->total);
}

static void *starting_main(void *arg)
{
	const struct timespec look = { .tv_sec = LOOK_S };
	const struct starting *s = arg;
	struct service_progress now, before = { 0 };

	for (unsigned n = 0;; n++) {
		int signal_number;

		service_progress(s->service, &now);
		if (n == 0 || now.moves != before.moves || now.step != before.step)
			tell(&now);
		before = now;
		if (n && n % LOOKS_A_LINE == 0)
			log_detail(LOG_INFO_, "starting", "%s: revision %" PRIu64 " of %" PRIu64, now.step,
				   now.replayed, now.total);
		signal_number = sigtimedwait(&s->awaited, NULL, &look);
		if (signal_number == SIGUSR1)
			return NULL;
		if (signal_number > 0) {
			log_line(LOG_INFO_, "stopped before it had started", NULL);
			_exit(0);
		}
	}
}

enum pw_status starting_begin(struct starting *s, const struct service *sv, struct pw_err *err)
{
	int e;

	*s = (struct starting){ .service = sv };
	sigemptyset(&s->awaited);
	sigaddset(&s->awaited, SIGUSR1);
	sigaddset(&s->awaited, SIGTERM);
	sigaddset(&s->awaited, SIGINT);
	e = pthread_create(&s->thread, NULL, starting_main, s);
	if (e)
		return pw_fail(err, PW_NO_MEMORY, "starting a thread: %s", strerror(e));
	s->runs = true;
	return PW_OK;
}

void starting_end(struct starting *s)
{
	if (!s->runs)
		return;
	pthread_kill(s->thread, SIGUSR1);
	pthread_join(s->thread, NULL);
	s->runs = false;
}
