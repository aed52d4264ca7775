// What Boost.Interprocess takes, measured as the cases of package bench are.
//
//	boost alone MS
//	boost contended PROCS INSIDE_NS OUTSIDE_NS MS
//	boost append-int64 MS, append-string MS
//	boost get KEYS MS, set KEYS MS
//	boost queue PROCS SIZE MS
//
// It prints lines of a word and numbers; package bench reads them. A total that is wrong ends it with 1. Memory is
// anonymous, and what needs a name loses it at once: nothing is left behind.
#include <boost/interprocess/anonymous_shared_memory.hpp>
#include <boost/interprocess/allocators/allocator.hpp>
#include <boost/interprocess/containers/string.hpp>
#include <boost/interprocess/containers/vector.hpp>
#include <boost/interprocess/ipc/message_queue.hpp>
#include <boost/interprocess/managed_external_buffer.hpp>
#include <boost/interprocess/sync/interprocess_mutex.hpp>
#include <boost/interprocess/sync/scoped_lock.hpp>
#include <boost/unordered_map.hpp>

#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <new>
#include <sched.h>
#include <string>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>
#include <vector>

namespace ip = boost::interprocess;
using i64 = std::int64_t;
using lock = ip::scoped_lock<ip::interprocess_mutex>;

constexpr int most = 64;
constexpr std::size_t memory = std::size_t(1) << 28;

static i64 now() {
	return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

[[noreturn]] static void fail(const std::string &what) {
	std::fprintf(stderr, "boost: %s\n", what.c_str());
	std::exit(1);
}

static std::uint64_t spin(int n) {
	volatile std::uint64_t keep;
	std::uint64_t x = n | 1;
	for (int i = 0; i < n; i++)
		x = x * 6364136223846793005u + 1442695040888963407u;
	keep = x;
	return keep;
}

static int work(i64 ns) {
	double best = 0;
	for (int i = 0; i < 30; i++) {
		i64 begin = now();
		spin(20000);
		best = std::max(best, 20000.0 / (now() - begin + 1));
	}
	return ns * best + 0.5;
}

struct lane {
	alignas(128) std::atomic<i64> count{0};
	std::uint64_t sum = 0;
};

struct bed {
	alignas(128) ip::interprocess_mutex mutex;
	alignas(128) i64 data = 0;
	alignas(128) std::atomic<int> ready{0};
	alignas(128) std::atomic<bool> open{false};
	alignas(128) std::atomic<bool> stop{false};
	alignas(128) std::atomic<int> putting{0};
	lane lanes[most];

	void pass(int everybody) {
		ready++;
		while (ready < everybody)
			usleep(50);
		while (!open)
			sched_yield();
	}
};

static void start(bed *b, int n, const std::function<void(int)> &run) {
	pid_t self = getpid();
	for (int i = 0; i < n; i++) {
		pid_t pid = fork();
		if (pid < 0)
			fail("fork");
		if (pid == 0) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			if (getppid() != self)
				_exit(1);
			b->pass(n);
			try {
				run(i);
			} catch (const std::exception &e) {
				std::fprintf(stderr, "boost: %s\n", e.what());
				_exit(1);
			}
			_exit(0);
		}
	}
}

// watch prints what the lanes from to from+n count in a window, and waits for all processes.
static void watch(bed *b, int from, int n, int all, int ms) {
	std::vector<i64> before;
	i64 ops = 0;
	while (b->ready < all)
		usleep(100);
	b->open = true;
	usleep(ms * 100);
	i64 begin = now();
	for (int i = 0; i < n; i++)
		before.push_back(b->lanes[from + i].count);
	usleep(ms * 1000);
	i64 elapsed = now() - begin;
	std::string shares = "shares";
	for (int i = 0; i < n; i++) {
		i64 share = b->lanes[from + i].count - before[i];
		ops += share;
		shares += " " + std::to_string(share);
	}
	b->stop = true;
	for (int i = 0; i < all; i++) {
		int status;
		if (wait(&status) < 0 || status != 0)
			fail("a process failed");
	}
	std::printf("%s\nops %lld\nelapsed %lld\n", shares.c_str(), (long long)ops, (long long)elapsed);
}

// alone calls many times until the window is over.
template <class F> static i64 alone(int ms, i64 most_calls, F call, std::function<void()> fresh = [] {}) {
	i64 n = 0, elapsed = 0;
	while (elapsed < i64(ms) * 1000000) {
		fresh();
		i64 begin = now();
		for (i64 i = 0; i < most_calls; i++)
			call(n++);
		elapsed += now() - begin;
	}
	std::printf("ops %lld\nelapsed %lld\n", (long long)n, (long long)elapsed);
	return n;
}

static void contended(bed *b, int procs, int inside_ns, int outside_ns, int ms) {
	int inside = work(inside_ns), outside = work(outside_ns);
	start(b, procs, [=](int i) {
		i64 took = 0;
		while (took == 0 || !b->stop) {
			for (int j = 0; j < 16; j++) {
				{
					lock l(b->mutex);
					b->data++;
					if (inside)
						spin(inside);
				}
				took++;
				if (outside)
					spin(outside);
			}
			b->lanes[i].count = took;
		}
	});
	watch(b, 0, procs, procs, ms);
	i64 total = 0;
	for (int i = 0; i < procs; i++)
		total += b->lanes[i].count;
	if (total != b->data)
		fail("the lock does not exclude");
	std::printf("total %lld\n", (long long)total);
}

using buffer = ip::managed_external_buffer;
using segment = buffer::segment_manager;
template <class T> using allocator = ip::allocator<T, segment>;
using text = ip::basic_string<char, std::char_traits<char>, allocator<char>>;

template <class T, class Make> static void append(bed *b, buffer &m, int ms, Make make) {
	using vector = ip::vector<T, allocator<T>>;
	vector *v = m.construct<vector>("v")(m.get_segment_manager());
	const i64 most_elements = 100000;
	alone(ms, most_elements, [&](i64) {
		lock l(b->mutex);
		v->push_back(make());
	}, [&] { v->clear(); v->shrink_to_fit(); });
	if (i64(v->size()) != most_elements)
		fail("elements are missing");
}

static void keyed(bed *b, buffer &m, i64 keys, bool put, int ms) {
	using pair = std::pair<const i64, i64>;
	using map = boost::unordered_map<i64, i64, boost::hash<i64>, std::equal_to<i64>, allocator<pair>>;
	map *d = m.construct<map>("m")(0, boost::hash<i64>(), std::equal_to<i64>(), allocator<pair>(m.get_segment_manager()));
	for (i64 k = 0; k < keys; k++)
		(*d)[k] = k;
	auto at = [=](i64 i) { return i64(std::uint64_t(i) * 48271 % keys); };
	i64 n;
	if (put)
		n = alone(ms, 1000, [&](i64 i) {
			lock l(b->mutex);
			(*d)[at(i)] = -i;
		});
	else
		n = alone(ms, 1000, [&](i64 i) {
			lock l(b->mutex);
			auto found = d->find(at(i));
			if (found == d->end() || found->second != at(i))
				fail("a key has another value");
		});
	if (i64(d->size()) != keys || (put && (*d)[at(n - 1)] != 1 - n))
		fail("a value was lost");
}

static void queue(bed *b, int procs, std::size_t size, int ms) {
	std::string name = "shmkit-bench-" + std::to_string(getpid());
	ip::message_queue q(ip::create_only, name.c_str(), 1024, size);
	ip::message_queue::remove(name.c_str()); // processes that fork have it
	b->putting = procs;
	start(b, 2 * procs, [&, procs, size](int i) {
		std::vector<std::uint64_t> message(size / 8);
		lane &l = b->lanes[i];
		i64 count = 0;
		if (i < procs) {
			while (count == 0 || !b->stop) {
				message[0] = std::uint64_t(i) << 48 | ++count;
				l.sum += message[0];
				q.send(message.data(), size, 0);
				l.count = count;
			}
			if (--b->putting == 0) // the last one says to all who get that this is the end
				for (int j = 0; j < procs; j++)
					q.send(message.data(), 0, 0);
			return;
		}
		for (;;) {
			ip::message_queue::size_type n;
			unsigned priority;
			q.receive(message.data(), size, n, priority);
			if (n == 0)
				return;
			l.sum += message[0];
			l.count = ++count;
		}
	});
	watch(b, procs, procs, 2 * procs, ms);
	i64 put = 0, got = 0;
	std::uint64_t sum = 0;
	for (int i = 0; i < procs; i++) {
		put += b->lanes[i].count;
		got += b->lanes[procs + i].count;
		sum += b->lanes[i].sum - b->lanes[procs + i].sum;
	}
	if (put != got || sum != 0)
		fail("messages are missing");
	std::printf("total %lld\nbytes %zu\n", (long long)got, size);
}

int main(int n, char **a) try {
	if (n < 3)
		return 2;
	ip::mapped_region r(ip::anonymous_shared_memory(sizeof(bed) + 128));
	bed *b = new (r.get_address()) bed;
	ip::mapped_region mr(ip::anonymous_shared_memory(memory));
	buffer m(ip::create_only, mr.get_address(), memory);
	std::string what = a[1];
	int ms = std::atoi(a[n - 1]);
	if (what == "alone" && n == 3)
		alone(ms, 1000, [&](i64) { lock l(b->mutex); });
	else if (what == "contended" && n == 6 && std::atoi(a[2]) <= most)
		contended(b, std::atoi(a[2]), std::atoi(a[3]), std::atoi(a[4]), ms);
	else if (what == "append-int64" && n == 3)
		append<i64>(b, m, ms, [] { return i64(7); });
	else if (what == "append-string" && n == 3)
		append<text>(b, m, ms, [&] { return text("ssssssssssssssssssssssssssssssss", m.get_segment_manager()); });
	else if ((what == "get" || what == "set") && n == 4)
		keyed(b, m, std::atoll(a[2]), what == "set", ms);
	else if (what == "queue" && n == 5 && std::atoi(a[2]) <= most / 2 && std::atoi(a[3]) >= 8)
		queue(b, std::atoi(a[2]), std::atoi(a[3]), ms);
	else
		return 2;
	return std::fflush(stdout) ? 1 : 0;
} catch (const std::exception &e) {
	fail(e.what());
}
