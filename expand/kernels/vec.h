// Vectors of eight numbers, threads, and memory for intermediate results.
#pragma once

#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <thread>
#include <vector>

// Hidden, since several builds may be loaded into one process and must not share what is theirs.
namespace [[gnu::visibility("hidden")]] x3d {

constexpr int64_t LANES = 8;

template <typename S>
struct Lanes {
    typedef S Vec __attribute__((vector_size(LANES * sizeof(S))));
};
template <typename S>
using Vec = typename Lanes<S>::Vec;

template <typename S>
inline Vec<S> load(const S* from) {
    Vec<S> value;
    std::memcpy(&value, from, sizeof value);  // no alignment is asked for
    return value;
}

template <typename S>
inline void store(S* to, Vec<S> value) {
    std::memcpy(to, &value, sizeof value);
}

template <typename S>
inline Vec<S> all(S value) {
    return Vec<S>{value, value, value, value, value, value, value, value};
}

// Adds numbers to eight long sums.
template <typename S>
inline void add_to(double* sums, Vec<S> value) {
    store(sums, load(sums) + __builtin_convertvector(value, Vec<double>));
}

// max(x, 0), where NaN stays NaN.
template <typename S>
inline Vec<S> relu(Vec<S> x) {
    return x < 0 ? Vec<S>{} : x;
}

// `x` where `of` is positive or NaN, else 0: the gradient of relu, as PyTorch has it.
template <typename S>
inline Vec<S> where_positive(Vec<S> of, Vec<S> x) {
    return of <= 0 ? Vec<S>{} : x;
}

inline Vec<double> exp(Vec<double> x) {
    for (int lane = 0; lane < LANES; ++lane) x[lane] = std::exp(x[lane]);
    return x;
}

// e^x to about 1e-7 relative: 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2] (coefficients of Cephes' expf).
inline Vec<float> exp(Vec<float> x) {
    x = x < -87.0f ? all(-87.0f) : x;  // e^87 and e^-87 are normal numbers, and so are their inverses
    x = x > 87.0f ? all(87.0f) : x;
    const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
    Vec<float> n = (x * 1.44269504088896341f + magic) - magic;
    Vec<float> r = x - n * 0.693359375f + n * 2.12194440e-4f;
    const Vec<float> square = r * r;  // in pairs of terms, which need not wait for one another
    Vec<float> p = (1.9875691500e-4f * r + 1.3981999507e-3f) * square + (8.3334519073e-3f * r + 4.1665795894e-2f);
    p = (p * square + (1.6666665459e-1f * r + 5.0000001201e-1f)) * square + (r + 1.0f);
    typedef int32_t Ints __attribute__((vector_size(LANES * sizeof(int32_t))));
    Ints bits = (__builtin_convertvector(n, Ints) + 127) << 23;
    Vec<float> power;
    std::memcpy(&power, &bits, sizeof power);
    return p * power;
}

template <typename S>
inline Vec<S> sigmoid(Vec<S> x) {
    return S(1) / (S(1) + exp(-x));
}

inline int64_t padded(int64_t width) { return (width + LANES - 1) / LANES * LANES; }

using Gomp = void (*)(void (*)(void*), void*, unsigned, unsigned);
inline Gomp gomp_parallel = nullptr;  // torch's own threads, so that no second set of them spins beside

// body(task) for every task below `tasks`, on up to `threads` threads. Throws std::bad_alloc where a task does: no
// exception may leave a thread, so it is caught there and thrown again here.
template <typename Body>
void parallel(int threads, int64_t tasks, const Body& body) {
    struct Shared {
        const Body& body;
        const int64_t tasks;
        std::atomic<int64_t> next{0};
        std::atomic<bool> has_failed{false};
    } shared{body, tasks};
    auto work = [](void* context) {
        auto& s = *static_cast<Shared*>(context);
        try {
            for (int64_t task; (task = s.next.fetch_add(1, std::memory_order_relaxed)) < s.tasks;) s.body(task);
        } catch (...) {  // memory is all that a task can run out of
            s.has_failed = true;
            s.next = s.tasks;
        }
    };
    if (int64_t(threads) > tasks) threads = int(tasks);
    if (threads <= 1) {
        work(&shared);
    } else if (gomp_parallel) {
        gomp_parallel(work, &shared, unsigned(threads), 0);
    } else {
        std::vector<std::thread> others;
        others.reserve(threads);
        try {
            for (int i = 1; i < threads; ++i) others.emplace_back(work, &shared);
        } catch (...) {  // the system gives no more of them: those that there are do all of the work
        }
        work(&shared);
        for (auto& other : others) other.join();
    }
    if (shared.has_failed) throw std::bad_alloc();
}

// A share of the work, with sums of its own; their number depends on shape and threads alone, and sums are added in
// their order, so that results do not depend on which thread was first.
struct Range {
    int64_t begin, end;
};
inline int64_t shares(int threads, int64_t tasks) {
    const int64_t most = threads == 1 ? 1 : 4 * int64_t(threads);
    return tasks < most ? tasks : most;
}
inline Range share(int64_t index, int64_t count, int64_t tasks) {
    return {index * tasks / count, (index + 1) * tasks / count};
}

// A matrix that every share adds to in a copy of its own.
template <typename S>
class Partial {
public:
    Partial(int64_t shares, int64_t rows, int64_t width)
        : shares_(shares), rows_(rows), width_(width), data_(new S[shares * rows * width]()) {}
    S* of(int64_t share) { return data_.get() + share * rows_ * width_; }
    // The sum, `real_width` of each row's numbers: to[r * row_step + n * n_step].
    void sum(int threads, S* to, int64_t real_width, int64_t row_step, int64_t n_step) const {
        parallel(rows_ * width_ * shares_ > 32768 ? threads : 1, rows_, [&](int64_t r) {
            S* line = data_.get() + r * width_;
            for (int64_t s = 1; s < shares_; ++s) {
                const S* other = line + s * rows_ * width_;
                for (int64_t n = 0; n < real_width; ++n) line[n] += other[n];
            }
            for (int64_t n = 0; n < real_width; ++n) to[r * row_step + n * n_step] = line[n];
        });
    }

private:
    int64_t shares_, rows_, width_;
    std::unique_ptr<S[]> data_;
};

// Memory that this thread keeps for the next call: `count` numbers, one piece a `slot`.
template <typename S>
S* scratch(int slot, int64_t count) {
    static thread_local std::unique_ptr<char[]> pieces[8];
    static thread_local int64_t sizes[8] = {};
    const int64_t bytes = count * int64_t(sizeof(S)) + 64;
    if (sizes[slot] < bytes) {
        sizes[slot] = 0;  // first give, then take
        pieces[slot].reset();
        pieces[slot].reset(new char[bytes]);
        sizes[slot] = bytes;
    }
    const auto address = (reinterpret_cast<uintptr_t>(pieces[slot].get()) + 63) / 64 * 64;
    return reinterpret_cast<S*>(address);
}

}  // namespace x3d
