// What expand/kernels/library.py calls: every function for float and for double. Tensors are channels-last and
// contiguous; sizes are int64, and the comments in the headers give the shapes. No header of torch is needed.

#include "depthwise.h"
#include "gate.h"
#include "pointwise.h"
#include "stem.h"

#ifndef X3D_SOURCE_HASH
#define X3D_SOURCE_HASH ""
#endif

// 0, or 1 where memory ran out, and the results are not to be used: no exception may leave a C function.
template <typename Call>
static int outcome(const Call& call) {
    try {
        call();
        return 0;
    } catch (...) {
        return 1;
    }
}

#define FOR_BOTH(NAME)                                             \
    extern "C" int NAME##_f32(NAME##_ARGUMENTS(float)) {             \
        return outcome([&] { x3d::NAME<float>(NAME##_CALL); });    \
    }                                                              \
    extern "C" int NAME##_f64(NAME##_ARGUMENTS(double)) {            \
        return outcome([&] { x3d::NAME<double>(NAME##_CALL); });   \
    }

// a norm's width, parameters and running statistics; all but the width may be null where `norm` is
#define NORM_ARGUMENTS(S)                                                                                       \
    int64_t norm_width, const S *gamma, const S *beta, S *running_mean, S *running_var, int64_t *batches,       \
        double momentum, double eps
#define NORM_CALL {norm_width, gamma, beta, running_mean, running_var, batches, momentum, eps}
#define GATE_ARGUMENTS(S) \
    int64_t hidden, const S *reduce, const S *reduce_bias, const S *expand, const S *expand_bias
#define GATE_CALL {hidden, reduce, reduce_bias, expand, expand_bias}

#define expand_forward_ARGUMENTS(S) \
    int threads, int64_t rows, int64_t depth, const S *x, const S *weight, S *u, NORM_ARGUMENTS(S), S *norm
#define expand_forward_CALL threads, rows, depth, x, weight, u, NORM_CALL, norm
FOR_BOTH(expand_forward)

#define expand_backward_ARGUMENTS(S)                                                                             \
    int threads, int64_t rows, int64_t depth, int64_t width, const S *g, const S *u, const S *slopes, const S *x, \
        const S *weight, const S *dz, const S *z, int64_t base, S *dx, S *dweight
#define expand_backward_CALL threads, rows, depth, width, g, u, slopes, x, weight, dz, z, base, dx, dweight
FOR_BOTH(expand_backward)

#define depthwise_forward_ARGUMENTS(S)                                                                            \
    int threads, int64_t clips, int64_t frames, int64_t height, int64_t width, int64_t channels, int64_t stride,  \
        const S *u, const S *u_norm, const S *weight, S *v, NORM_ARGUMENTS(S), S *norm, S *means
#define depthwise_forward_CALL \
    threads, {clips, frames, height, width, channels, stride}, u, u_norm, weight, v, NORM_CALL, norm, means
FOR_BOTH(depthwise_forward)

#define depthwise_backward_ARGUMENTS(S)                                                                            \
    int threads, int64_t clips, int64_t frames, int64_t height, int64_t width, int64_t channels, int64_t stride,   \
        int64_t real_channels, const S *g, const S *v, const S *slope, const S *along, const S *offset, const S *u, \
        const S *u_norm, const S *weight, S *du, S *u_slopes, S *dgamma, S *dbeta, S *dweight
#define depthwise_backward_CALL                                                                                   \
    threads, {clips, frames, height, width, channels, stride}, real_channels, g, v, slope, along, offset, u, u_norm, \
        weight, du, u_slopes, dgamma, dbeta, dweight
FOR_BOTH(depthwise_backward)

#define gate_forward_ARGUMENTS(S)                                                                              \
    int threads, int64_t clips, int64_t width, const S *means, const S *v_norm, GATE_ARGUMENTS(S), S *active, \
        S *gate
#define gate_forward_CALL threads, clips, width, means, v_norm, GATE_CALL, active, gate
FOR_BOTH(gate_forward)

#define gate_backward_ARGUMENTS(S)                                                                                \
    int, int64_t clips, int64_t per_clip, int64_t width, const double *sums, const S *means, const S *v_norm,     \
        const S *gamma, const S *beta, GATE_ARGUMENTS(S), const S *active, const S *gate, S *slope, S *along,     \
        S *offset, S *dgamma, S *dbeta, S *d_reduce, S *d_reduce_bias, S *d_expand, S *d_expand_bias
#define gate_backward_CALL                                                                                        \
    clips, per_clip, width, sums, means, v_norm, gamma, beta, GATE_CALL, active, gate, slope, along, offset, dgamma, \
        dbeta, {hidden, d_reduce, d_reduce_bias, d_expand, d_expand_bias}
FOR_BOTH(gate_backward)

#define project_forward_ARGUMENTS(S)                                                                           \
    int threads, int64_t clips, int64_t per_clip, int64_t depth, const S *v, const S *v_norm, const S *gate,   \
        const S *weight, S *y, NORM_ARGUMENTS(S), S *norm
#define project_forward_CALL threads, clips, per_clip, depth, v, v_norm, gate, weight, y, NORM_CALL, norm
FOR_BOTH(project_forward)

#define project_backward_ARGUMENTS(S)                                                                               \
    int threads, int64_t clips, int64_t per_clip, int64_t depth, int64_t width, const S *dz, const S *z, const S *y, \
        const S *y_slopes, const S *v, const S *v_norm, const S *gate, const S *weight, S *dv, S *dweight,          \
        double *sums
#define project_backward_CALL \
    threads, clips, per_clip, depth, width, dz, z, y, y_slopes, v, v_norm, gate, weight, dv, dweight, sums
FOR_BOTH(project_backward)

#define add_forward_ARGUMENTS(S) \
    int threads, int64_t rows, int64_t width, const S *y, const S *y_norm, const S *q, const S *q_norm, S *z
#define add_forward_CALL threads, rows, width, y, y_norm, q, q_norm, z
FOR_BOTH(add_forward)

#define add_backward_ARGUMENTS(S)                                                                                  \
    int threads, int64_t rows, int64_t width, const S *dz, const S *z, const S *y, const S *y_norm, S *y_slopes,   \
        S *dgamma, S *dbeta, const S *q, const S *q_norm, S *q_slopes, S *q_dgamma, S *q_dbeta
#define add_backward_CALL \
    threads, rows, width, dz, z, y, y_norm, y_slopes, dgamma, dbeta, q, q_norm, q_slopes, q_dgamma, q_dbeta
FOR_BOTH(add_backward)

#define shortcut_backward_ARGUMENTS(S) \
    int threads, int64_t rows, int64_t width, const S *dz, const S *z, const S *q, const S *slopes, S *dq
#define shortcut_backward_CALL threads, rows, width, dz, z, q, slopes, dq
FOR_BOTH(shortcut_backward)

#define pool_forward_ARGUMENTS(S) \
    int threads, int64_t clips, int64_t per_clip, int64_t width, const S *u, const S *u_norm, S *pooled
#define pool_forward_CALL threads, clips, per_clip, width, u, u_norm, pooled
FOR_BOTH(pool_forward)

#define pool_backward_ARGUMENTS(S)                                                                              \
    int threads, int64_t clips, int64_t per_clip, int64_t width, const S *dpooled, const S *u, const S *u_norm, \
        S *du, S *slopes, S *dgamma, S *dbeta
#define pool_backward_CALL threads, clips, per_clip, width, dpooled, u, u_norm, du, slopes, dgamma, dbeta
FOR_BOTH(pool_backward)

#define stem_forward_ARGUMENTS(S)                                                                                  \
    int threads, int64_t clips, int64_t frames, int64_t height, int64_t width, int64_t channels, const S *x,       \
        const S *of_space, const S *of_time, S *q, NORM_ARGUMENTS(S), S *norm
#define stem_forward_CALL \
    threads, {clips, frames, height, width, channels}, x, of_space, of_time, q, NORM_CALL, norm
FOR_BOTH(stem_forward)

#define stem_backward_ARGUMENTS(S)                                                                             \
    int threads, int64_t clips, int64_t frames, int64_t height, int64_t width, int64_t channels, const S *x,   \
        const S *of_space, const S *of_time, const S *dz, const S *z, const S *q, const S *slopes, S *d_space, \
        S *d_time
#define stem_backward_CALL \
    threads, {clips, frames, height, width, channels}, x, of_space, of_time, dz, z, q, slopes, d_space, d_time
FOR_BOTH(stem_backward)

// Where torch starts its threads (GOMP_parallel), or null: then ours are started a call.
extern "C" void use_openmp(void* parallel) { x3d::gomp_parallel = reinterpret_cast<x3d::Gomp>(parallel); }

// The hash of the sources that this was built from.
extern "C" const char* source_hash() { return X3D_SOURCE_HASH; }

// out[i] = i, over all threads: whether calls arrive at all.
extern "C" int probe_f32(int threads, float* out, int64_t n) {
    return outcome([&] { x3d::parallel(threads, n, [&](int64_t i) { out[i] = float(i); }); });
}
