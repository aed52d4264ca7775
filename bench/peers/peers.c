// What C programs use between processes, measured as the cases of package bench are.
//
//	peers contended LOCK PROCS INSIDE_NS OUTSIDE_NS WRITES MS
//	peers alone LOCK MS
//	peers pingpong MS
//	peers flow PROCS SIZE MS
//
// It prints lines of a word and numbers; package bench reads them. Each process counts on cache lines of its own;
// a total that is wrong, or a process that fails, ends it with 1.
#define _GNU_SOURCE
#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MOST = 64, BUCKETS = 4 * 63 };

static int64_t now(void) {
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ll + t.tv_nsec;
}

// As the histogram of package bench: four buckets for each power of two.
static int bucket(int64_t d) {
	uint64_t u = d > 0 ? d : 1;
	int n = 63 - __builtin_clzll(u), i = 4 * n;
	uint64_t mantissa = u << (63 - n);
	return i + (mantissa >= 15511800964685064949u ? 3 : mantissa >= 13043817825332782213u ? 2 : mantissa >= 10968499650544839024u ? 1 : 0);
}

static __attribute__((noinline)) uint64_t spin(int n) {
	volatile uint64_t keep;
	uint64_t x = n | 1;
	for (int i = 0; i < n; i++)
		x = x * 6364136223846793005u + 1442695040888963407u;
	keep = x;
	return keep;
}

static int work(int64_t ns) {
	double best = 0;
	for (int i = 0; i < 30; i++) {
		int64_t begin = now();
		spin(20000);
		double rate = 20000.0 / (now() - begin + 1);
		if (rate > best)
			best = rate;
	}
	return ns * best + 0.5;
}

struct lane {
	_Alignas(128) atomic_long took;
	int64_t wrote, longest, cpu, switches;
	uint64_t waits[BUCKETS];
};

static struct shared {
	_Alignas(128) pthread_mutex_t mutex;
	pthread_rwlock_t rwlock;
	sem_t sems[2];
	_Alignas(128) atomic_uint word;
	volatile int64_t data;
	_Alignas(128) atomic_int ready;
	_Alignas(128) atomic_int open;
	_Alignas(128) atomic_int stop;
	struct lane lanes[MOST];
} *s;

static void fail(const char *what, int err) {
	fprintf(stderr, "peers: %s: %s\n", what, strerror(err));
	exit(1);
}

// Drepper's mutex2: a lock of three states.
static inline void futex_lock(void) {
	unsigned free = 0;
	if (atomic_compare_exchange_strong(&s->word, &free, 1))
		return;
	while (atomic_exchange(&s->word, 2) != 0)
		syscall(SYS_futex, &s->word, FUTEX_WAIT, 2, NULL, NULL, 0);
}

static inline void futex_unlock(void) {
	if (atomic_exchange(&s->word, 0) == 2)
		syscall(SYS_futex, &s->word, FUTEX_WAKE, 1, NULL, NULL, 0);
}

enum kind { PTHREAD, ROBUST, FUTEX3, RWLOCK };

static inline void lock(enum kind k, int write) {
	int err = k == FUTEX3 ? (futex_lock(), 0) : k == RWLOCK ? (write ? pthread_rwlock_wrlock(&s->rwlock) : pthread_rwlock_rdlock(&s->rwlock)) : pthread_mutex_lock(&s->mutex);
	if (err)
		fail("lock", err);
}

static inline void unlock(enum kind k) {
	if (k == FUTEX3)
		futex_unlock();
	else if (k == RWLOCK)
		pthread_rwlock_unlock(&s->rwlock);
	else
		pthread_mutex_unlock(&s->mutex);
}

static enum kind prepare(const char *name) {
	pthread_mutexattr_t m;
	pthread_rwlockattr_t rw;
	enum kind k = !strcmp(name, "pthread") ? PTHREAD : !strcmp(name, "robust") ? ROBUST : !strcmp(name, "futex3") ? FUTEX3 : RWLOCK;
	pthread_mutexattr_init(&m);
	pthread_mutexattr_setpshared(&m, PTHREAD_PROCESS_SHARED);
	if (k == ROBUST)
		pthread_mutexattr_setrobust(&m, PTHREAD_MUTEX_ROBUST);
	pthread_mutex_init(&s->mutex, &m);
	pthread_rwlockattr_init(&rw);
	pthread_rwlockattr_setpshared(&rw, PTHREAD_PROCESS_SHARED);
	pthread_rwlock_init(&s->rwlock, &rw);
	return k;
}

static void used(struct lane *l, int sign) {
	struct rusage u;
	getrusage(RUSAGE_SELF, &u);
	l->cpu += sign * ((u.ru_utime.tv_sec + u.ru_stime.tv_sec) * 1000000000ll + (u.ru_utime.tv_usec + u.ru_stime.tv_usec) * 1000ll);
	l->switches += sign * (u.ru_nvcsw + u.ru_nivcsw);
}

static void pass(int everybody) {
	atomic_fetch_add(&s->ready, 1);
	while (atomic_load(&s->ready) < everybody)
		usleep(50);
	while (!atomic_load(&s->open))
		sched_yield();
}

static void taker(enum kind k, struct lane *l, int procs, int inside, int outside, unsigned writes) {
	int stride = inside + outside ? 16 : 64;
	unsigned mix = now();
	pass(procs);
	used(l, -1);
	int64_t left = now(), took = 0;
	while (took == 0 || !atomic_load(&s->stop)) { // once even if it comes to run too late
		int64_t begin = now();
		if (begin - left > l->longest)
			l->longest = begin - left;
		atomic_store(&l->took, took);
		for (int i = 0; i < stride; i++) {
			mix = mix * 1664525 + 1013904223;
			int write = ((mix >> 16) * 100 >> 16) < writes;
			lock(k, write);
			if (i == 0) {
				left = now();
				l->waits[bucket(left - begin)]++;
				if (left - begin > l->longest)
					l->longest = left - begin;
			}
			if (write) {
				s->data++;
				l->wrote++;
			}
			if (inside)
				spin(inside);
			unlock(k);
			took++;
			if (outside)
				spin(outside);
		}
	}
	atomic_store(&l->took, took);
	used(l, 1);
}

static pid_t child(pid_t parent) {
	pid_t pid = fork();
	if (pid < 0)
		fail("fork", errno);
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (getppid() != parent)
			_exit(1);
	}
	return pid;
}

static void reap(int n) {
	while (n-- > 0) {
		int status;
		if (wait(&status) < 0 || status != 0)
			fail("a process failed", ECHILD);
	}
}

static void print_waits(const uint64_t *waits) {
	printf("waits");
	for (int i = 0; i < BUCKETS; i++)
		printf(" %llu", (unsigned long long)waits[i]);
	printf("\n");
}

static void contended(char **a) {
	enum kind k = prepare(a[0]);
	int procs = atoi(a[1]), inside = work(atoi(a[2])), outside = work(atoi(a[3])), writes = atoi(a[4]), ms = atoi(a[5]);
	int64_t before[MOST], after[MOST], ops = 0, total = 0, wrote = 0, longest = 0, cpu = 0, switches = 0;
	static uint64_t waits[BUCKETS];
	pid_t self = getpid();
	for (int i = 0; i < procs; i++)
		if (child(self) == 0) {
			taker(k, &s->lanes[i], procs, inside, outside, writes);
			_exit(0);
		}
	while (atomic_load(&s->ready) < procs)
		usleep(100);
	atomic_store(&s->open, 1);
	usleep(ms * 100);
	int64_t begin = now();
	for (int i = 0; i < procs; i++)
		before[i] = atomic_load(&s->lanes[i].took);
	usleep(ms * 1000);
	int64_t elapsed = now() - begin;
	for (int i = 0; i < procs; i++)
		after[i] = atomic_load(&s->lanes[i].took);
	atomic_store(&s->stop, 1);
	reap(procs);
	printf("shares");
	for (int i = 0; i < procs; i++) {
		struct lane *l = &s->lanes[i];
		printf(" %lld", (long long)(after[i] - before[i]));
		ops += after[i] - before[i];
		total += atomic_load(&l->took);
		wrote += l->wrote;
		cpu += l->cpu;
		switches += l->switches;
		longest = l->longest > longest ? l->longest : longest;
		for (int j = 0; j < BUCKETS; j++)
			waits[j] += l->waits[j];
	}
	if (wrote != s->data || (writes == 100 && total != wrote))
		fail("the lock does not exclude", EINVAL);
	printf("\nops %lld\nelapsed %lld\ntotal %lld\nlongest %lld\ncpu %lld\nswitches %lld\n", (long long)ops, (long long)elapsed,
	       (long long)total, (long long)longest, (long long)cpu, (long long)switches);
	print_waits(waits);
}

static void alone(char **a) {
	enum kind k = prepare(a[0]);
	int64_t window = atoi(a[1]) * 1000000ll, ops = 0, begin = now();
	used(&s->lanes[0], -1);
	do {
		for (int i = 0; i < 1000; i++) {
			lock(k, 0);
			unlock(k);
		}
		ops += 1000;
	} while (now() - begin < window);
	int64_t elapsed = now() - begin;
	used(&s->lanes[0], 1);
	printf("ops %lld\nelapsed %lld\ncpu %lld\nswitches %lld\n", (long long)ops, (long long)elapsed, (long long)s->lanes[0].cpu, (long long)s->lanes[0].switches);
}

static void must_wait(sem_t *sem) {
	while (sem_wait(sem))
		if (errno != EINTR)
			fail("sem_wait", errno);
}

static void pingpong(char **a) {
	int64_t window = atoi(a[0]) * 1000000ll, ops = 0, last = 0, longest = 0, answered = 0;
	static uint64_t waits[BUCKETS];
	sem_init(&s->sems[0], 1, 0);
	sem_init(&s->sems[1], 1, 0);
	if (child(getpid()) == 0) {
		pass(2);
		used(&s->lanes[1], -1);
		for (;;) {
			must_wait(&s->sems[1]);
			s->lanes[1].wrote++;
			int over = atomic_load(&s->stop);
			if (over)
				used(&s->lanes[1], 1);
			sem_post(&s->sems[0]);
			if (over)
				_exit(0);
		}
	}
	atomic_store(&s->open, 1);
	pass(2);
	used(&s->lanes[0], -1);
	for (int64_t begin = now(); last < window; ops++) {
		sem_post(&s->sems[1]);
		must_wait(&s->sems[0]);
		int64_t t = now() - begin, d = t - last;
		last = t;
		waits[bucket(d)]++;
		longest = d > longest ? d : longest;
	}
	used(&s->lanes[0], 1);
	atomic_store(&s->stop, 1);
	sem_post(&s->sems[1]);
	must_wait(&s->sems[0]);
	answered = s->lanes[1].wrote;
	reap(1);
	if (answered != ops + 1)
		fail("answers are missing", EINVAL);
	printf("ops %lld\nelapsed %lld\nlongest %lld\ncpu %lld\nswitches %lld\n", (long long)ops, (long long)last, (long long)longest,
	       (long long)(s->lanes[0].cpu + s->lanes[1].cpu), (long long)(s->lanes[0].switches + s->lanes[1].switches));
	print_waits(waits);
}

// Dmitry Vyukov's bounded queue for many producers and many consumers: each cell says whose turn it is. Who finds
// it full or empty spins, and lets others run after a while: processors are fewer than processes at times.
enum { CELLS = 1024, LARGEST = 4096 };

static struct ring {
	_Alignas(128) atomic_ulong put;
	_Alignas(128) atomic_ulong got;
	_Alignas(128) atomic_int putting;
	_Alignas(128) char cells[CELLS * (LARGEST + 16)];
} *r;

static size_t stride;

struct cell {
	atomic_ulong seq;
	uint64_t data[];
};

static inline struct cell *cell(unsigned long at) { return (struct cell *)(r->cells + (at % CELLS) * stride); }

static inline int try_put(const uint64_t *message, size_t size) {
	unsigned long at = atomic_load_explicit(&r->put, memory_order_relaxed);
	for (;;) {
		struct cell *c = cell(at);
		long behind = (long)(atomic_load_explicit(&c->seq, memory_order_acquire) - at);
		if (behind < 0)
			return 0;
		if (behind > 0)
			at = atomic_load_explicit(&r->put, memory_order_relaxed);
		else if (atomic_compare_exchange_weak_explicit(&r->put, &at, at + 1, memory_order_relaxed, memory_order_relaxed)) {
			memcpy(c->data, message, size);
			atomic_store_explicit(&c->seq, at + 1, memory_order_release);
			return 1;
		}
	}
}

static inline int try_get(uint64_t *message, size_t size) {
	unsigned long at = atomic_load_explicit(&r->got, memory_order_relaxed);
	for (;;) {
		struct cell *c = cell(at);
		long behind = (long)(atomic_load_explicit(&c->seq, memory_order_acquire) - (at + 1));
		if (behind < 0)
			return 0;
		if (behind > 0)
			at = atomic_load_explicit(&r->got, memory_order_relaxed);
		else if (atomic_compare_exchange_weak_explicit(&r->got, &at, at + 1, memory_order_relaxed, memory_order_relaxed)) {
			memcpy(message, c->data, size);
			atomic_store_explicit(&c->seq, at + CELLS, memory_order_release);
			return 1;
		}
	}
}

static inline void again(int *tries) {
	if (++*tries % 256 == 0)
		sched_yield();
	else {
#if defined __x86_64__ || defined __i386__
		__builtin_ia32_pause();
#endif
	}
}

// passer puts if party < procs, or gets. The size is a constant in each place that calls it, as a compiler would know it.
static inline __attribute__((always_inline)) void passer(int party, int procs, const size_t size) {
	struct lane *l = &s->lanes[party];
	uint64_t message[LARGEST / 8] = {0}, sum = 0;
	int64_t count = 0;
	pass(2 * procs);
	used(l, -1);
	if (party < procs) {
		while (count == 0 || !atomic_load_explicit(&s->stop, memory_order_relaxed)) {
			count++;
			message[0] = (uint64_t)party << 48 | count;
			sum += message[0];
			for (int tries = 0; !try_put(message, size);)
				again(&tries);
			atomic_store_explicit(&l->took, count, memory_order_relaxed);
		}
		atomic_fetch_sub(&r->putting, 1);
	} else {
		for (int tries = 0;;) {
			int last = atomic_load(&r->putting) == 0;
			if (try_get(message, size)) {
				sum += message[0];
				atomic_store_explicit(&l->took, ++count, memory_order_relaxed);
			} else if (last)
				break;
			else
				again(&tries);
		}
	}
	l->wrote = sum;
	used(l, 1);
}

static void flow(char **a) {
	int procs = atoi(a[0]), size = atoi(a[1]), ms = atoi(a[2]);
	int64_t before[MOST], ops = 0, put = 0, got = 0, cpu = 0, switches = 0;
	uint64_t sum = 0;
	r = mmap(NULL, sizeof *r, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (r == MAP_FAILED)
		fail("mmap", errno);
	stride = (sizeof(struct cell) + size + 15) / 16 * 16;
	for (unsigned long i = 0; i < CELLS; i++)
		atomic_store(&cell(i)->seq, i);
	atomic_store(&r->putting, procs);
	pid_t self = getpid();
	for (int i = 0; i < 2 * procs; i++)
		if (child(self) == 0) {
			if (size == 8)
				passer(i, procs, 8);
			else if (size == 64)
				passer(i, procs, 64);
			else
				passer(i, procs, LARGEST);
			_exit(0);
		}
	while (atomic_load(&s->ready) < 2 * procs)
		usleep(100);
	atomic_store(&s->open, 1);
	usleep(ms * 100);
	int64_t begin = now();
	for (int i = 0; i < procs; i++)
		before[i] = atomic_load(&s->lanes[procs + i].took);
	usleep(ms * 1000);
	int64_t elapsed = now() - begin;
	printf("shares");
	for (int i = 0; i < procs; i++) {
		int64_t share = atomic_load(&s->lanes[procs + i].took) - before[i];
		printf(" %lld", (long long)share);
		ops += share;
	}
	atomic_store(&s->stop, 1);
	fflush(stdout);
	reap(2 * procs);
	for (int i = 0; i < 2 * procs; i++) {
		struct lane *l = &s->lanes[i];
		*(i < procs ? &put : &got) += atomic_load(&l->took);
		sum += i < procs ? (uint64_t)l->wrote : -(uint64_t)l->wrote;
		cpu += l->cpu;
		switches += l->switches;
	}
	if (put != got || sum != 0)
		fail("messages are missing", EINVAL);
	printf("\nbytes %d", size);
	printf("\nops %lld\nelapsed %lld\ntotal %lld\ncpu %lld\nswitches %lld\n", (long long)ops, (long long)elapsed, (long long)got, (long long)cpu, (long long)switches);
}

int main(int n, char **a) {
	s = mmap(NULL, sizeof *s, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (s == MAP_FAILED)
		fail("mmap", errno);
	if (n == 8 && !strcmp(a[1], "contended") && atoi(a[3]) >= 1 && atoi(a[3]) <= MOST)
		contended(a + 2);
	else if (n == 4 && !strcmp(a[1], "alone"))
		alone(a + 2);
	else if (n == 3 && !strcmp(a[1], "pingpong"))
		pingpong(a + 2);
	else if (n == 5 && !strcmp(a[1], "flow") && atoi(a[2]) >= 1 && atoi(a[2]) <= MOST / 2 && (atoi(a[3]) == 8 || atoi(a[3]) == 64 || atoi(a[3]) == LARGEST))
		flow(a + 2);
	else
		return 2;
	return fflush(stdout) ? 1 : 0;
}
