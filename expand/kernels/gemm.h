// Matrix products of many short rows with small matrices, which general libraries do at half their speed.
#pragma once

#include "vec.h"

namespace [[gnu::visibility("hidden")]] x3d {

// C[r][0 .. 8 VECS) (+)= sum over k of A[r * a_row + k * a_step] * B[k * b_row ...], for ROWS rows.
template <typename S, int ROWS, int VECS>
inline void tile(const S* a, int64_t a_row, int64_t a_step, const S* b, int64_t b_row, S* c, int64_t c_row,
                 int64_t depth, bool add) {
    Vec<S> sum[ROWS][VECS] = {};
    for (int64_t k = 0; k < depth; ++k, a += a_step, b += b_row) {
        Vec<S> row[VECS];
#pragma GCC unroll 3
        for (int v = 0; v < VECS; ++v) row[v] = load(b + v * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) {
            const Vec<S> factor = all(a[r * a_row]);
#pragma GCC unroll 3
            for (int v = 0; v < VECS; ++v) sum[r][v] += factor * row[v];
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 3
        for (int v = 0; v < VECS; ++v) {
            S* to = c + r * c_row + v * LANES;
            store(to, add ? load(to) + sum[r][v] : sum[r][v]);
        }
}

// All rows of one panel of 8 VECS columns, in tiles that fill the registers.
template <typename S, int VECS>
void panel(int64_t rows, const S* a, int64_t a_row, int64_t a_step, const S* b, int64_t b_row, S* c, int64_t c_row,
           int64_t depth, bool add) {
    constexpr int ROWS = VECS == 3 ? 4 : VECS == 2 ? 6 : 8;
    int64_t r = 0;
    for (; r + ROWS <= rows; r += ROWS)
        tile<S, ROWS, VECS>(a + r * a_row, a_row, a_step, b, b_row, c + r * c_row, c_row, depth, add);
    for (; r + 2 <= rows; r += 2)
        tile<S, 2, VECS>(a + r * a_row, a_row, a_step, b, b_row, c + r * c_row, c_row, depth, add);
    if (r < rows) tile<S, 1, VECS>(a + r * a_row, a_row, a_step, b, b_row, c + r * c_row, c_row, depth, add);
}

// Panels of three and two vectors that make up `vectors`: f(first, vectors of the panel).
template <typename F>
inline void for_panels(int64_t vectors, const F& f) {
    for (int64_t first = 0; first < vectors;) {
        const int64_t left = vectors - first;
        const int64_t taken = left == 1 ? 1 : left % 3 == 0 ? 3 : 2;
        f(first, taken);
        first += taken;
    }
}

// The right factor of a product: row-major, or in panels that lie together.
template <typename S>
struct Right {
    const S* data;
    int64_t row;  // numbers from row to row; 0: in panels
};

// C = A B or C += A B; A has `rows` x `depth` entries a[r * a_row + k * a_step], B `depth` x `width` (a multiple of 8).
template <typename S>
void multiply(int64_t rows, int64_t depth, int64_t width, const S* a, int64_t a_row, int64_t a_step, Right<S> b, S* c,
              int64_t c_row, bool add) {
    for_panels(width / LANES, [&](int64_t first, int64_t vectors) {
        const S* from = b.data + (b.row ? 1 : depth) * first * LANES;
        int64_t b_row = b.row ? b.row : vectors * LANES;
        S* to = c + first * LANES;
        if (b.row > vectors * LANES && rows > 24) {  // its lines would push one another out of the first cache
            S* together = scratch<S>(7, depth * vectors * LANES);
            for (int64_t k = 0; k < depth; ++k)
                std::memcpy(together + k * vectors * LANES, from + k * b_row, vectors * LANES * sizeof(S));
            from = together, b_row = vectors * LANES;
        }
        if (vectors == 3) panel<S, 3>(rows, a, a_row, a_step, from, b_row, to, c_row, depth, add);
        else if (vectors == 2) panel<S, 2>(rows, a, a_row, a_step, from, b_row, to, c_row, depth, add);
        else panel<S, 1>(rows, a, a_row, a_step, from, b_row, to, c_row, depth, add);
    });
}

// A small matrix in panels, padded with zeros: entry (k, n) is from[k * k_step + n * n_step].
template <typename S>
class Packed {
public:
    Packed(int threads, const S* from, int64_t depth, int64_t real_depth, int64_t k_step, int64_t width, int64_t n_step)
        : data_(new S[depth * padded(width)]) {
        std::vector<std::pair<int64_t, int64_t>> panels;
        for_panels(padded(width) / LANES, [&](int64_t first, int64_t vectors) { panels.push_back({first, vectors}); });
        const bool is_large = depth * width > 16384;
        parallel(is_large ? threads : 1, int64_t(panels.size()), [&](int64_t index) {
            const auto [first, vectors] = panels[index];
            S* to = data_.get() + depth * first * LANES;
            const int64_t begin = first * LANES, end = begin + vectors * LANES, real_end = end < width ? end : width;
            for (int64_t k = 0; k < depth; ++k, to += vectors * LANES) {
                const int64_t real = k < real_depth ? real_end - begin : 0;
                const S* line = from + k * k_step + begin * n_step;
                for (int64_t n = 0; n < real; ++n) to[n] = line[n * n_step];
                for (int64_t n = real; n < end - begin; ++n) to[n] = S(0);
            }
        });
    }
    Right<S> right() const { return {data_.get(), 0}; }

private:
    std::unique_ptr<S[]> data_;
};

// Rows of a product at a time, of `width` numbers each: they stay in the second cache, and every thread gets as many.
struct Chunks {
    int64_t rows, count;
    Chunks(int threads, int64_t all_rows, int64_t width) {
        int64_t most = 80000 / width;
        most = most < 24 ? 24 : most > 240 ? 240 : most;
        count = (all_rows + most - 1) / most;
        count = (count + threads - 1) / threads * threads;
        rows = ((all_rows + count - 1) / count + 11) / 12 * 12;  // whole tiles
        count = (all_rows + rows - 1) / rows;
    }
};

}  // namespace x3d
