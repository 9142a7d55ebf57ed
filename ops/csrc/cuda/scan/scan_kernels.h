// The kernels of a scan and of its gradient, made of the two passes.
//
// Inputs give the signal and the decay of the channels that select(channel) names: load(row, at) returns the Loaded
// that signal(loaded, at) takes, which writes the decay if it is not given; `at` counts elements.
#pragma once

#include <cmath>

#include "cuda/scan/scan_passes.h"

namespace grootv {

// Gives every row of the sums the signal and, as a second one, the gradient of the result. Their loads do not wait for
// each other, and neither pass has to repeat them.
template <class Group, class acc_t, int SIGNALS, class Inputs>
__device__ void start_sums(const HeavyLight& decomposition, const HeavyLight::Lists& lists,
                           const ChannelTile<Group, acc_t>& tile, const Inputs& inputs,
                           const typename Inputs::scalar_t* grad, const Totals<Group, acc_t, SIGNALS>& totals) {
    using scalar_t = typename Inputs::scalar_t;
    struct Loaded {
        typename Inputs::Loaded inputs;
        Vector<scalar_t> grad;
    };
    const int64_t vertices = decomposition.vertices, begin = lists.first_item * vertices;
    tile.for_each_ahead(
        begin, begin + lists.items * vertices,
        [&](int64_t row) {
            const int64_t at = tile.at(static_cast<int32_t>(row));
            Loaded loaded{inputs.load(static_cast<int32_t>(row), at), {}};
            if constexpr (SIGNALS == 2) loaded.grad = load_once(&as_vector(grad + at));
            return loaded;
        },
        [&](int64_t row, const Loaded& loaded) {
            Vectors<acc_t, SIGNALS> values{{inputs.signal(loaded.inputs, tile.at(static_cast<int32_t>(row)))}};
            if constexpr (SIGNALS == 2) values.signal[1] = cast<acc_t>(loaded.grad);
            totals.store(static_cast<int32_t>(row), tile, values);
        });
    Group::sync();
}

// What a vertex adds to what comes from above. Its own sum already flowed into the parent's: that share is taken out
// before the parent's total flows back.
template <class acc_t>
__device__ Vector<acc_t> without_own_share(const Vector<acc_t>& sum, const Vector<acc_t>& decay) {
    return map<acc_t>([](auto sum, auto decay) { return std::fma(-decay, decay * sum, sum); }, sum, decay);
}

template <class acc_t, int SIGNALS>
struct OwnSums {
    struct Loaded {};

    __device__ Loaded load(int32_t) const { return {}; }
    __device__ Vectors<acc_t, SIGNALS> values(Loaded, const Vectors<acc_t, SIGNALS>& sums,
                                              const Vector<acc_t>& decay) const {
        Vectors<acc_t, SIGNALS> own;
        for (int k = 0; k < SIGNALS; ++k) own.signal[k] = without_own_share(sums.signal[k], decay);
        return own;
    }
};

template <class Group, class Inputs>
struct StoreOutput {
    using acc_t = typename Inputs::acc_t;
    using scalar_t = typename Inputs::scalar_t;
    static constexpr bool BY_WARPS = false;
    struct Loaded {};
    const ChannelTile<Group, acc_t>& tile;
    scalar_t* output;

    __device__ Loaded load(int32_t) const { return {}; }
    __device__ void store(int32_t row, const Vector<acc_t>& value, bool live) const {
        if (live) store_once(&as_vector(output + tile.at(row)), cast<scalar_t>(value));
    }
    __device__ void operator()(PathEntry entry, Loaded, const Vectors<acc_t, 1>&, const Vector<acc_t>&,
                               const Vectors<acc_t, 1>&, const Vectors<acc_t, 1>& x, bool live) const {
        store(entry.vertex(), x.signal[0], live);
    }
};

template <class Group, class Inputs>
__global__ void __launch_bounds__(BLOCK_THREADS<Group>, 1)
    scan_kernel(TileLayout layout, Inputs inputs, HeavyLight decomposition, bool both,
                Totals<Group, typename Inputs::acc_t, 1> totals, typename Inputs::scalar_t* to) {
    using acc_t = typename Inputs::acc_t;
    const ChannelTile<Group, acc_t> tile(layout);
    const HeavyLight::Lists lists = decomposition.lists(tile.block);
    StoreOutput<Group, Inputs> output{tile, to};
    inputs.select(tile.channel);
    auto store = [&](int32_t row, const Vectors<acc_t, 1>& sum, bool live) {
        output.store(row, sum.signal[0], live && !both);
    };
    const Decays<Group, acc_t, typename Inputs::decay_t> decays{tile, inputs.decays};
    start_sums(decomposition, lists, tile, inputs, nullptr, totals);
    if (decomposition.made()) {
        up_pass(lists, tile, decays, totals, store);
        if (both) down_pass(lists, tile, decays, OwnSums<acc_t, 1>{}, totals, output);
    }
    for_each_invalid(decomposition, lists, tile,
                     [&](int32_t row, bool live) { output.store(row, filled(acc_t(NAN)), live); });
}

// ---- its gradient. Gradients take those of signal and decay: load(inputs, row, at) returns a Loaded for store(tile,
// inputs, row, loaded, decay, gradients of signal and decay, is_root, live); end(tile) comes last, with SHARED_VECTORS
// vectors of shared memory for each thread.

// For direction `up`, where a vertex receives its own subtree only: its gradient comes from above only.
template <class Group, class Inputs>
struct GradFromAbove {
    using acc_t = typename Inputs::acc_t;
    using scalar_t = typename Inputs::scalar_t;
    using Loaded = Vector<scalar_t>;
    const ChannelTile<Group, acc_t>& tile;
    const scalar_t* grad;

    __device__ Loaded load(int32_t row) const { return as_vector(grad + tile.at(row)); }
    __device__ Vectors<acc_t, 1> values(const Loaded& loaded, const Vectors<acc_t, 1>&, const Vector<acc_t>&) const {
        return {{cast<acc_t>(loaded)}};
    }
};

// The gradient of a decay: what goes up its edge times what comes down.
template <class acc_t>
__device__ Vector<acc_t> grad_of_decay(const Vectors<acc_t, 1>& sums, const Vector<acc_t>&,
                                       const Vectors<acc_t, 1>& above) {
    return sums.signal[0] * above.signal[0];
}

// For signal and gradient in turn, and of what comes down, without what went up before.
template <class acc_t>
__device__ Vector<acc_t> grad_of_decay(const Vectors<acc_t, 2>& sums, const Vector<acc_t>& decay,
                                       const Vectors<acc_t, 2>& above) {
    return map<acc_t>(
        [](auto sum, auto grad_sum, auto decay, auto above, auto grad_above) {
            return std::fma(grad_sum, std::fma(-decay, sum, above), sum * std::fma(-decay, grad_sum, grad_above));
        },
        sums.signal[0], sums.signal[1], decay, above.signal[0], above.signal[1]);
}

template <class Group, class Inputs, class Gradients>
struct StoreGradients {
    using acc_t = typename Inputs::acc_t;
    using Loaded = typename Gradients::Loaded;
    static constexpr bool BY_WARPS = Gradients::BY_WARPS;
    const ChannelTile<Group, acc_t>& tile;
    const Inputs& inputs;
    Gradients& gradients;

    __device__ Loaded load(int32_t row) const { return gradients.load(inputs, row, tile.at(row)); }
    template <int SIGNALS>
    __device__ void operator()(PathEntry entry, const Loaded& loaded, const Vectors<acc_t, SIGNALS>& sums,
                               const Vector<acc_t>& decay, const Vectors<acc_t, SIGNALS>& above,
                               const Vectors<acc_t, SIGNALS>& x, bool live) {
        const Vector<acc_t> grad_decay = entry.is_root() ? Vector<acc_t>{} : grad_of_decay(sums, decay, above);
        gradients.store(tile, inputs, entry.vertex(), loaded, decay, x.signal[SIGNALS - 1], grad_decay, entry.is_root(),
                        live);
    }
};

// For direction `both` with two signals, because the gradient of the signal is then the scan of the gradient: P(i, j)
// is symmetric.
template <class Group, int SIGNALS, class Inputs, class Gradients>
__global__ void __launch_bounds__(BLOCK_THREADS<Group>, 1)
    scan_backward_kernel(TileLayout layout, Inputs inputs, const typename Inputs::scalar_t* grad,
                         HeavyLight decomposition, Totals<Group, typename Inputs::acc_t, SIGNALS> totals,
                         Gradients gradients) {
    using acc_t = typename Inputs::acc_t;
    const ChannelTile<Group, acc_t> tile(layout);
    const HeavyLight::Lists lists = decomposition.lists(tile.block);
    inputs.select(tile.channel);
    StoreGradients<Group, Inputs, Gradients> store{tile, inputs, gradients};
    const Decays<Group, acc_t, typename Inputs::decay_t> decays{tile, inputs.decays};
    start_sums(decomposition, lists, tile, inputs, grad, totals);
    if (decomposition.made()) {
        up_pass(lists, tile, decays, totals, [](auto...) {});
        if constexpr (SIGNALS == 2)
            down_pass(lists, tile, decays, OwnSums<acc_t, 2>{}, totals, store);
        else
            down_pass(lists, tile, decays, GradFromAbove<Group, Inputs>{tile, grad}, totals, store);
    }
    for_each_invalid(decomposition, lists, tile, [&](int32_t row, bool live) {
        const Vector<acc_t> nan = filled(acc_t(NAN));
        gradients.store(tile, inputs, row, store.load(row), nan, nan, nan, false, live);
    });
    gradients.end(tile);
}

}  // namespace grootv
