// The launches of a scan and of its gradient: how channels, items and shared memory are divided among blocks.
#pragma once

#include <algorithm>
#include <bit>
#include <optional>
#include <type_traits>

#include "cuda/common/workspace.h"
#include "cuda/scan/scan_kernels.h"

namespace grootv {

// The decomposition, made here if it is not given, the scratch memory and the launches of one call. Its rows are padded
// with 0 to whole vectors of channels.
class Scan {
public:
    Scan(const ScanSizes& sizes, const Tensor& signal, const Tensor& order, const Tensor& parent,
         const std::optional<Tensor>& decomposition)
        : sizes(sizes), device_(sizes.function, signal), workspace_(signal), order_(order), parent_(parent) {
        if (decomposition) {
            check_tensor(sizes.function, "decomposition", "the result of heavy_light", *decomposition, ScalarType::Int,
                         {sizes.batch, HeavyLight::words_of_one(sizes.vertices)}, signal);
            decomposition_ = aligned(*decomposition);
        }
        check_batch(sizes.function, sizes.batch, sizes.vertices);
        constexpr int64_t MOST = int64_t{1} << 20;
        check(sizes.channels <= MOST, sizes.function, ": a CUDA device takes at most ", MOST, " channels, got ",
              sizes.channels);
        const int64_t vector = signal.scalar_type() == ScalarType::Double ? VECTOR_SIZE<double> : VECTOR_SIZE<float>;
        channels_ = (sizes.channels + vector - 1) / vector * vector;
    }

    bool empty() const { return sizes.batch * sizes.channels == 0; }

    // Channels come last.
    Tensor padded(const Tensor& given) const {
        const int64_t fill[] = {0, channels_ - sizes.channels};
        if (fill[1] > 0) return torch::stable::pad(given, {fill, 2});
        return aligned(given);
    }
    Tensor new_rows(const Tensor& like) const { return make_empty(like, {sizes.batch, sizes.vertices, channels_}); }
    Tensor new_parts(const Tensor& like, int64_t count) const { return make_empty(like, {count, channels_}); }
    Tensor unpadded(Tensor rows) const {
        return channels_ == sizes.channels
                   ? rows
                   : as_contiguous(torch::stable::narrow(rows, rows.dim() - 1, 0, sizes.channels));
    }

    template <class Inputs, class scalar_t = typename Inputs::scalar_t>
    void forward(Inputs inputs, bool both, scalar_t* output) {
        using acc_t = typename Inputs::acc_t;
        with_group([&](auto group, const HeavyLight& decomposition) {
            using Group = decltype(group);
            acc_t* rows = rows_for<acc_t>(output);
            const auto totals = take_scratch<Group, acc_t, 1>(inputs, Group::IS_BLOCK ? nullptr : rows,
                                                              Group::IS_BLOCK ? rows : nullptr);
            auto* kernel = scan_kernel<Group, Inputs>;
            launch<Group>(make_plan(kernel, totals, 0), kernel, inputs, decomposition, both, totals, output);
        });
    }

    // With two signals for direction `both`, with one for `up`. `gradient` is a result that a decay may stand in until
    // then. make_gradients(tiles, blocks) with the numbers of channel tiles and of blocks for each.
    template <int SIGNALS, class Inputs, class MakeGradients>
    void backward(Inputs inputs, const typename Inputs::scalar_t* grad, typename Inputs::scalar_t* gradient,
                  MakeGradients make_gradients) {
        using acc_t = typename Inputs::acc_t;
        using Gradients = decltype(make_gradients(0, 0));
        with_group([&](auto group, const HeavyLight& decomposition) {
            using Group = decltype(group);
            const auto totals = take_scratch<Group, acc_t, SIGNALS>(inputs, nullptr, rows_for<acc_t>(gradient));
            auto* kernel = scan_backward_kernel<Group, SIGNALS, Inputs, Gradients>;
            const Plan plan = make_plan(kernel, totals, Gradients::SHARED_VECTORS);
            launch<Group>(plan, kernel, inputs, grad, decomposition, totals, make_gradients(plan.tiles, plan.blocks));
        });
    }

    const ScanSizes sizes;

private:
    // How the work is divided among blocks.
    struct Plan {
        int64_t tile_threads, tiles, tiles_at_once;
        int64_t blocks;                 // of a tile
        int64_t threads, shared_bytes;  // of a block
    };

    // Contiguous, for loads of 16 bytes.
    static Tensor aligned(const Tensor& given) {
        Tensor rows = as_contiguous(given);
        constexpr uintptr_t ALIGNMENT = 16;
        return reinterpret_cast<uintptr_t>(rows.const_data_ptr()) % ALIGNMENT == 0 ? rows : torch::stable::clone(rows);
    }

    template <class Run>
    void with_group(Run run) {
        const bool blocks = HeavyLight::takes_blocks(device_, sizes.vertices);
        if (!decomposition_)
            decomposition_ = decompose_heavy_light(device_, as_contiguous(order_), as_contiguous(parent_));
        // Kernels of scans only read it.
        const HeavyLight decomposition(const_cast<int32_t*>(decomposition_->const_data_ptr<int32_t>()), sizes.batch,
                                       sizes.vertices, !blocks);
        if (blocks)
            run(BlockGroup{}, decomposition);
        else
            run(GridGroup{}, decomposition);
    }

    // The rows of a result that is written later, for values of type acc_t, if it has their type.
    template <class acc_t, class scalar_t>
    static acc_t* rows_for(scalar_t* result) {
        if constexpr (std::is_same_v<scalar_t, acc_t>)
            return result;
        else
            return nullptr;
    }

    // Carries, and of a grid the sums, and decays that are not given, in one allocation. `sums` and `decays` are where
    // those of the only signal and the decays go if not there: to the rows of a result that is written later.
    template <class Group, class acc_t, int SIGNALS, class Inputs>
    Totals<Group, acc_t, SIGNALS> take_scratch(Inputs& inputs, acc_t* sums, acc_t* decays) {
        static_assert(SIGNALS * sizeof(Vector<acc_t>) <= HeavyLight::SUM_BYTES);
        constexpr bool COMPUTED = requires { inputs.A; };
        const int64_t carries = sizes.batch * HeavyLight::carries_of_one(sizes.vertices) * channels_;
        const int64_t values = sizes.batch * sizes.vertices * channels_;
        const bool take_sums = !Group::IS_BLOCK && !sums, take_decays = COMPUTED && !decays;
        auto [taken_carries, taken_sums, taken_decays] = workspace_.take<acc_t, acc_t, acc_t>(
            (SIGNALS + 1) * carries, take_sums ? SIGNALS * values : 0, take_decays ? values : 0);
        if constexpr (COMPUTED) inputs.decays = decays ? decays : taken_decays;
        Totals<Group, acc_t, SIGNALS> totals{};
        totals.vertices = static_cast<int32_t>(sizes.vertices);
        for (int k = 0; k < SIGNALS; ++k) {
            if (!Group::IS_BLOCK) totals.rows[k] = sums ? sums : taken_sums + k * values;
            totals.carry[k] = taken_carries + k * carries;
        }
        totals.product = taken_carries + SIGNALS * carries;
        return totals;
    }

    // Every thread has some vectors in the shared memory of the totals, but at another time.
    template <class Kernel, class Group, class acc_t, int SIGNALS>
    Plan make_plan(Kernel kernel, const Totals<Group, acc_t, SIGNALS>&, int thread_vectors) const {
        constexpr int64_t MOST_CHANNELS = 32, MEMORY_READ = 32, VECTOR_BYTES = sizeof(Vector<acc_t>);
        const int64_t vectors = channels_ / VECTOR_SIZE<acc_t>;
        auto tiles = [&](int64_t tile_threads) { return (vectors + tile_threads - 1) / tile_threads; };
        Plan plan{};
        plan.tile_threads =
            std::min<int64_t>(MOST_CHANNELS / VECTOR_SIZE<acc_t>, std::bit_ceil(static_cast<uint64_t>(vectors)));
        plan.threads = BLOCK_THREADS<Group>;
        if constexpr (Group::IS_BLOCK) {
            // The greatest tile whose sums fit into shared memory and which gives every multiprocessor a block, but no
            // less than 32 bytes of sums. Threads in proportion to the shared memory, so that the blocks of a
            // multiprocessor have about as many in all.
            auto bytes = [&] { return Totals<Group, acc_t, SIGNALS>::shared_bytes(sizes.vertices, plan.tile_threads); };
            auto is_too_great = [&] {
                const bool more_blocks = sizes.batch * tiles(plan.tile_threads) < device_.processors();
                return bytes() > device_.shared_bytes() ||
                       (more_blocks && plan.tile_threads * VECTOR_BYTES > MEMORY_READ);
            };
            while (plan.tile_threads > 1 && is_too_great()) plan.tile_threads /= 2;
            const int64_t share = plan.threads * bytes() / device_.shared_bytes();
            plan.threads = std::clamp<int64_t>(std::bit_ceil(static_cast<uint64_t>(share)), 2 * WARP, plan.threads);
            plan.shared_bytes = bytes();
        }
        plan.shared_bytes = std::max<int64_t>(plan.shared_bytes, plan.threads * thread_vectors * VECTOR_BYTES);
        plan.tiles = tiles(plan.tile_threads);
        if constexpr (Group::IS_BLOCK) {
            plan.blocks = sizes.batch;
            plan.tiles_at_once = std::clamp<int64_t>((int64_t{1} << 30) / plan.blocks, 1, plan.tiles);
        } else {
            const int64_t threads =
                sizes.batch * sizes.vertices / ENTRIES_AHEAD<Group, SIGNALS> * plan.tiles * plan.tile_threads;
            const int64_t blocks = device_.resident_blocks(kernel, threads, plan.threads, plan.shared_bytes);
            plan.tiles_at_once = std::min(plan.tiles, blocks);
            plan.blocks = blocks / plan.tiles_at_once;
        }
        return plan;
    }

    template <class Group, class... Parameters, class... Args>
    void launch(const Plan& plan, void (*kernel)(TileLayout, Parameters...), Args... args) const {
        for (int64_t first = 0; first < plan.tiles; first += plan.tiles_at_once) {
            const int64_t count = std::min(plan.tiles_at_once, plan.tiles - first), blocks = plan.blocks * count;
            const TileLayout layout{static_cast<int32_t>(channels_), static_cast<int32_t>(plan.tile_threads),
                                    static_cast<int32_t>(first), static_cast<int32_t>(count)};
            if constexpr (Group::IS_BLOCK)
                device_.launch(kernel, blocks, plan.threads, plan.shared_bytes, layout, args...);
            else
                device_.launch_cooperative(kernel, blocks, plan.threads, plan.shared_bytes, layout, args...);
        }
    }

    Device device_;
    Workspace workspace_;
    Tensor order_, parent_;
    std::optional<Tensor> decomposition_;
    int64_t channels_;  // padded to whole vectors
};

}  // namespace grootv
