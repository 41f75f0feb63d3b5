#include "agents/kvm_vcpu.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define NS_PER_MS   UINT64_C(1000000)
#define NS_PER_S    UINT64_C(1000000000)
#define SLICE_NS    (VCPU_SLICE_MS * NS_PER_MS)
#define KICK_SIGNAL (SIGRTMIN + 3)

uint64_t vcpu_now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * NS_PER_S + (uint64_t)t.tv_nsec;
}

static void on_kick(int sig)
{
}

/* The thread may be between taking the lock off and KVM_RUN: then the flag makes KVM_RUN return at once. */
static void take_out(struct vcpu *v)
{
	v->kvm->run->immediate_exit = 1;
	pthread_kill(v->thread, KICK_SIGNAL);
}

void vcpu_park(struct vcpu *v)
{
	v->parked++;
	while (v->in_guest) {
		take_out(v);
		pthread_cond_wait(&v->changed, v->lock);
	}
}

void vcpu_unpark(struct vcpu *v)
{
	v->parked--;
	pthread_cond_broadcast(&v->changed);
}

void vcpu_set_runnable(struct vcpu *v, bool on)
{
	v->runnable = on;
	v->held = false;
	v->nap_until_ns = 0;
	pthread_cond_broadcast(&v->changed);
}

void vcpu_release(struct vcpu *v)
{
	v->held = false;
	pthread_cond_broadcast(&v->changed);
}

void vcpu_nap(struct vcpu *v, uint64_t until_ns)
{
	v->nap_until_ns = until_ns;
}

static bool make_timer(timer_t *timer)
{
	struct sigevent on = { .sigev_notify = SIGEV_THREAD_ID, .sigev_signo = KICK_SIGNAL };

	on._sigev_un._tid = gettid();
	return !timer_create(CLOCK_MONOTONIC, &on, timer);
}

/* Re-armed by itself, so that a signal which comes before KVM_RUN is not the last one. */
static void arm(timer_t timer, uint64_t ns)
{
	const struct timespec t = { .tv_sec = (time_t)(ns / NS_PER_S), .tv_nsec = (long)(ns % NS_PER_S) };
	const struct itimerspec every = { .it_interval = t, .it_value = t };

	timer_settime(timer, 0, &every, NULL);
}

static void apply(struct vcpu *v, enum vcpu_next next)
{
	switch (next) {
	case VCPU_GO: break;
	case VCPU_HOLD: v->held = true; break;
	case VCPU_END: v->runnable = false; break;
	}
}

static void enter(struct vcpu *v, timer_t timer)
{
	uint64_t since;
	int error;

	apply(v, v->before(v->ctx));
	if (!v->runnable || v->held || v->nap_until_ns)
		return;
	v->in_guest = true;
	v->kvm->run->immediate_exit = 0;
	pthread_mutex_unlock(v->lock);
	since = vcpu_now_ns();
	if (v->timed)
		arm(timer, SLICE_NS);
	error = kvm_vm_run(v->kvm);
	if (v->timed)
		arm(timer, 0);
	pthread_mutex_lock(v->lock);
	apply(v, v->exited(v->ctx, error));
	if (error == EINTR && vcpu_now_ns() - since >= SLICE_NS)
		vcpu_nap(v, vcpu_now_ns() + 9 * SLICE_NS);
	v->in_guest = false;
	pthread_cond_broadcast(&v->changed);
}

static void sleep_until(struct vcpu *v, uint64_t ns)
{
	const struct timespec t = { .tv_sec = (time_t)(ns / NS_PER_S), .tv_nsec = (long)(ns % NS_PER_S) };

	if (pthread_cond_timedwait(&v->changed, v->lock, &t) == ETIMEDOUT)
		v->nap_until_ns = 0;
}

static void *thread_main(void *arg)
{
	struct vcpu *v = arg;
	timer_t timer;

	v->timed = make_timer(&timer); /* without one, vcpu_park still gets the guest out */
	pthread_mutex_lock(v->lock);
	while (!v->stop) {
		if (!v->runnable || v->held || v->parked)
			pthread_cond_wait(&v->changed, v->lock);
		else if (v->nap_until_ns)
			sleep_until(v, v->nap_until_ns);
		else
			enter(v, timer);
	}
	pthread_mutex_unlock(v->lock);
	if (v->timed)
		timer_delete(timer);
	return NULL;
}

static int make_thread(struct vcpu *v)
{
	struct sigaction act = { .sa_handler = on_kick };
	sigset_t all, old;
	int r;

	sigemptyset(&act.sa_mask);
	sigaction(KICK_SIGNAL, &act, NULL);
	sigfillset(&all); /* signals are the program's, but for the kick */
	sigdelset(&all, KICK_SIGNAL);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	r = pthread_create(&v->thread, NULL, thread_main, v);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return r;
}

enum pw_status vcpu_start(struct vcpu *v, struct pw_err *err)
{
	pthread_condattr_t attr;
	int r;

	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&v->changed, &attr);
	pthread_condattr_destroy(&attr);
	r = make_thread(v);
	if (r) {
		pthread_cond_destroy(&v->changed);
		return pw_fail(err, PW_NO_MEMORY, "starting a vCPU thread: %s", strerror(r));
	}
	v->has_thread = true;
	return PW_OK;
}

void vcpu_stop(struct vcpu *v)
{
	if (!v->has_thread)
		return;
	pthread_mutex_lock(v->lock);
	v->stop = true;
	vcpu_park(v);
	vcpu_unpark(v);
	pthread_mutex_unlock(v->lock);
	pthread_join(v->thread, NULL);
	pthread_cond_destroy(&v->changed);
	v->has_thread = false;
}
