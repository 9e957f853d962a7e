// Squeeze and excitation: a clip's gates from its channels' means (Hu et al., arXiv 1709.01507), and the way back,
// together with that of the norm before them.
#pragma once

#include <algorithm>

#include "norm.h"

namespace [[gnu::visibility("hidden")]] x3d {

// reduce: hidden x width, expand: width x hidden, with biases.
template <typename S>
struct GateWeights {
    int64_t hidden;
    S *reduce, *reduce_bias, *expand, *expand_bias;
};

// gate = sigmoid(expand(relu(reduce(norm(means))))). means: clips x padded(width), of v; active: clips x hidden, after
// the relu.
template <typename S>
void gate_forward(int threads, int64_t clips, int64_t width, const S* means, const S* v_norm,
                  GateWeights<const S> weights, S* active, S* gate) {
    const int64_t line = padded(width);
    const Norm<const S> norm(v_norm, line);
    parallel(threads, clips, [&](int64_t clip) {
        S *pooled = scratch<S>(0, line), *h = active + clip * weights.hidden;
        for (int64_t c = 0; c < width; ++c) pooled[c] = norm.scale[c] * means[clip * line + c] + norm.shift[c];
        for (int64_t j = 0; j < weights.hidden; ++j) {
            S sum = weights.reduce_bias[j];
            for (int64_t c = 0; c < width; ++c) sum += weights.reduce[j * width + c] * pooled[c];
            h[j] = sum < 0 ? S(0) : sum;
        }
        for (int64_t c = 0; c < line; ++c) {
            S sum = c < width ? weights.expand_bias[c] : S(0);
            for (int64_t j = 0; c < width && j < weights.hidden; ++j)
                sum += weights.expand[c * weights.hidden + j] * h[j];
            gate[clip * line + c] = c < width ? S(1) / (S(1) + std::exp(-sum)) : S(0);
        }
    });
}

// What the way back to v needs of each clip: dv = slope * g + along * v + offset, with g as project_backward left it;
// slope, offset: clips x padded(width). `sums` are project_backward's. Without gates, `gate` is null.
template <typename S>
void gate_backward(int64_t clips, int64_t per_clip, int64_t width, const double* sums, const S* means, const S* v_norm,
                   const S* gamma, const S* beta, GateWeights<const S> weights, const S* active, const S* gate,
                   S* slope, S* along, S* offset, S* dgamma, S* dbeta, GateWeights<S> gradients) {
    const int64_t line = padded(width), hidden = gate ? weights.hidden : 0;
    const Norm<const S> norm(v_norm, line);
    const double count = double(clips) * double(per_clip);
    std::vector<double> plain(line, 0.0), normal(line, 0.0), of_pooled(clips * line, 0.0);
    std::vector<double> d_reduce(hidden * width, 0.0), d_expand(width * hidden, 0.0), d_reduce_bias(hidden, 0.0),
        d_expand_bias(width, 0.0), of_hidden(hidden), of_gate(width), pooled(width);
    for (int64_t clip = 0; clip < clips; ++clip) {
        const double *g = sums + clip * 2 * line, *g_normal = g + line;
        double* d_pooled = of_pooled.data() + clip * line;
        if (gate) {
            const S* h = active + clip * hidden;
            std::fill(of_hidden.begin(), of_hidden.end(), 0.0);
            for (int64_t c = 0; c < width; ++c) {
                const double open = gate[clip * line + c];
                pooled[c] = double(norm.scale[c]) * means[clip * line + c] + norm.shift[c];
                of_gate[c] = (gamma[c] * g_normal[c] + beta[c] * g[c]) * open * (1 - open);
                d_expand_bias[c] += of_gate[c];
                for (int64_t j = 0; j < hidden; ++j) {
                    d_expand[c * hidden + j] += of_gate[c] * h[j];
                    of_hidden[j] += of_gate[c] * weights.expand[c * hidden + j];
                }
            }
            for (int64_t j = 0; j < hidden; ++j) {
                if (h[j] <= 0) continue;  // what is NaN goes on
                d_reduce_bias[j] += of_hidden[j];
                for (int64_t c = 0; c < width; ++c) {
                    d_reduce[j * width + c] += of_hidden[j] * pooled[c];
                    d_pooled[c] += of_hidden[j] * weights.reduce[j * width + c];
                }
            }
        }
        for (int64_t c = 0; c < width; ++c) {
            const double open = gate ? double(gate[clip * line + c]) : 1.0;
            plain[c] += open * g[c] + d_pooled[c];
            normal[c] += open * g_normal[c] +
                         d_pooled[c] * (double(means[clip * line + c]) - norm.mean[c]) * norm.inverse[c];
        }
    }
    for (int64_t c = 0; c < line; ++c) {
        const double scale = norm.scale[c], inverse = norm.inverse[c];
        along[c] = S(-scale * inverse * normal[c] / count);
        for (int64_t clip = 0; clip < clips; ++clip) {
            slope[clip * line + c] = S(scale * (gate ? double(gate[clip * line + c]) : 1.0));
            offset[clip * line + c] = S(scale * (of_pooled[clip * line + c] / double(per_clip) - plain[c] / count +
                                                 norm.mean[c] * inverse * normal[c] / count));
        }
        if (c < width) dgamma[c] = S(normal[c]), dbeta[c] = S(plain[c]);
    }
    const auto give = [](const std::vector<double>& from, S* to) {
        for (size_t i = 0; i < from.size(); ++i) to[i] = S(from[i]);
    };
    if (!gate) return;
    give(d_reduce, gradients.reduce);
    give(d_reduce_bias, gradients.reduce_bias);
    give(d_expand, gradients.expand);
    give(d_expand_bias, gradients.expand_bias);
}

}  // namespace x3d
