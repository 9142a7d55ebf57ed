// The kernels of the scan over tokens and of its gradient.
//
// The lanes of a channel follow the walk of its sequence. Blocks that share a channel or a state leave parts of the
// sums over states or channels, which are added up afterwards.
#pragma once

#include "cuda/tokens/token_stage.h"

namespace grootv {

// Memory of the rows of the walk: none if they fit into shared memory.
struct RowScratch {
    std::byte* memory;
    int64_t bytes;  // of a block
};

// The thread's states of every row.
template <class acc_t>
class StateRows {
public:
    __device__ StateRows(void* shared, const RowScratch& rows)
        : rows_(static_cast<acc_t*>(rows.memory ? static_cast<void*>(rows.memory + blockIdx.x * rows.bytes) : shared)) {
    }

    __device__ acc_t& at(const TokenVisit& visit, int k) const {
        return rows_[(visit.row * LANE_STATES + k) * TILE_THREADS + threadIdx.x];
    }

private:
    acc_t* rows_;
};

// The sum of a channel, for all its lanes.
template <class acc_t>
__device__ acc_t sum_over_lanes(acc_t value) {
    for (int other = CHANNEL_LANES / 2; other > 0; other /= 2) value += __shfl_xor_sync(~0u, value, other);
    return value;
}

// Calls visited(i, p, state) for every token, at place p of the walk and i of the stage, and done(stage, first) after
// each stage, which leaves the block synchronised.
template <class scalar_t, class acc_t, class Visited, class Done>
__device__ void up_pass(const TokenInputs<scalar_t>& in, const TokenTile& tile, StagedTokens<acc_t>& shared,
                        const StateRows<acc_t>& rows, Visited visited, Done done) {
    using std::exp;
    const LaneStates<acc_t> A = tile.load(in, in.A, 0);
    LaneStates<acc_t> sent{};
    TokenStage<scalar_t, false> stage(in, tile);
    stage.load(0);
    for (int32_t first = 0; first < in.length; first += STAGE_TOKENS) {
        stage.store(shared);
        __syncthreads();
        stage.load(first + STAGE_TOKENS);
        for (int i = 0; i < STAGE_TOKENS && first + i < in.length; ++i) {
            const TokenVisit visit = shared.visits[i];
            const int at = i * TILE_CHANNELS + tile.channel;
            const acc_t signal = shared.step[at] * shared.x[at], next_step = shared.next_step[at];
            LaneStates<acc_t> state;
            for (int k = 0; k < LANE_STATES; ++k) {
                state.value[k] = signal * shared.B[i * TILE_STATES + tile.lane + k * CHANNEL_LANES] + sent.value[k];
                sent.value[k] = exp(next_step * A.value[k]) * state.value[k];
                if (visit.siblings_sent) sent.value[k] += rows.at(visit, k);
            }
            if (!visit.parent_is_next) {
                for (int k = 0; k < LANE_STATES; ++k) rows.at(visit, k) = sent.value[k];
                sent = {};
            }
            visited(i, first + i, state);
        }
        __syncthreads();
        done(stage, first);
    }
}

// y goes to y_parts, one for each state tile, if there are several.
template <class scalar_t, class acc_t>
__global__ void __launch_bounds__(TILE_THREADS)
    token_scan_kernel(TokenInputs<scalar_t> in, RowScratch row_scratch, scalar_t* y, acc_t* y_parts, acc_t* last) {
    auto& shared = *reinterpret_cast<StagedTokens<acc_t>*>(shared_memory());
    const TokenTile tile(in);
    const StateRows<acc_t> rows(&shared + 1, row_scratch);
    auto visited = [&](int i, int32_t p, const LaneStates<acc_t>& state) {
        acc_t sum = 0;
        for (int k = 0; k < LANE_STATES; ++k)
            sum += shared.C[i * TILE_STATES + tile.lane + k * CHANNEL_LANES] * state.value[k];
        sum = sum_over_lanes(sum);
        __syncwarp();  // all have read x
        if (tile.lane == 0) shared.x[i * TILE_CHANNELS + tile.channel] = sum;
        if (p + 1 == in.length) tile.store(in, state, last);
    };
    up_pass(in, tile, shared, rows, visited, [&](const TokenStage<scalar_t, false>& stage, int32_t first) {
        stage.for_each_element(shared, first, [&](int e, int32_t token, int64_t c) {
            const int64_t i = (tile.item * in.length + token) * in.channels + c;
            if (y_parts)
                y_parts[tile.state_tile * in.size() + i] = shared.x[e];
            else
                y[i] = static_cast<scalar_t>(shared.x[e]);
        });
        __syncthreads();
    });
}

// ---- its gradient

// What the blocks leave to be added up, over state tiles, items or channel tiles, and the states that they keep.
template <class acc_t>
struct GradientParts {
    acc_t* signal;     // (state tiles, B, L, D): the gradient of the step times x
    acc_t* next_step;  // (state tiles, B, L, D): that of the following token's step by the decay, at that token
    acc_t* A;          // (B, D, N)
    acc_t *B, *C;      // (channel tiles, B, L, N)
    acc_t* states;     // (blocks, L, used, TILE_THREADS), by place of the walk
};

// Adds up 2 LANE_STATES values over the channels of a warp. The lanes of channel c keep that of value c % (2
// LANE_STATES).
template <class acc_t>
__device__ acc_t sum_over_channels(acc_t (&value)[2 * LANE_STATES]) {
    static_assert(2 * LANE_STATES * CHANNEL_LANES == WARP);
#pragma unroll
    for (int half = LANE_STATES, other = WARP / 2; half > 0; half /= 2, other /= 2) {
        const bool upper = threadIdx.x & other;
#pragma unroll
        for (int j = 0; j < half; ++j) {
            const acc_t given = upper ? value[j] : value[j + half], kept = upper ? value[j + half] : value[j];
            value[j] = kept + __shfl_xor_sync(~0u, given, other);
        }
    }
    return value[0];
}

template <class scalar_t, class acc_t>
__global__ void __launch_bounds__(TILE_THREADS)
    token_scan_backward_kernel(TokenInputs<scalar_t> in, RowScratch row_scratch, const scalar_t* grad,
                               const acc_t* grad_last, GradientParts<acc_t> parts) {
    using std::exp;
    auto& shared = *reinterpret_cast<StagedTokensBackward<acc_t>*>(shared_memory());
    const TokenTile tile(in);
    const StateRows<acc_t> rows(&shared + 1, row_scratch);
    const int used = in.used();
    acc_t* states = parts.states + int64_t{blockIdx.x} * in.length * used * TILE_THREADS + tile.thread;
    up_pass(
        in, tile, shared, rows,
        [&](int, int32_t p, const LaneStates<acc_t>& state) {
            for (int k = 0; k < LANE_STATES; ++k)
                if (k < used) states[(int64_t{p} * used + k) * TILE_THREADS] = state.value[k];
        },
        [](const TokenStage<scalar_t, false>&, int32_t) {});

    auto load_states = [&](int32_t p) {
        LaneStates<acc_t> state{};
        for (int k = 0; k < LANE_STATES; ++k)
            if (k < used) state.value[k] = states[(int64_t{p} * used + k) * TILE_THREADS];
        return state;
    };
    const LaneStates<acc_t> A = tile.load(in, in.A, 0);
    LaneStates<acc_t> gradient = tile.load(in, grad_last, tile.item), ahead = load_states(in.length - 1), A_sum;
    for (int k = 0; k < LANE_STATES; ++k) A_sum.value[k] = in.walks.valid[tile.item] ? acc_t{0} : acc_t(NAN);
    TokenStage<scalar_t, true> stage(in, tile, grad);
    int32_t first = (in.length - 1) / STAGE_TOKENS * STAGE_TOKENS;
    stage.load(first);
    for (; first >= 0; first -= STAGE_TOKENS) {
        stage.store(shared);
        __syncthreads();
        if (first > 0) stage.load(first - STAGE_TOKENS);
        const int count = in.length - first < STAGE_TOKENS ? in.length - first : STAGE_TOKENS;
        LaneStates<acc_t> A_part{};
        for (int i = count - 1; i >= 0; --i) {
            const LaneStates<acc_t> state = ahead;
            if (first + i > 0) ahead = load_states(first + i - 1);
            const TokenVisit visit = shared.visits[i];
            const bool root = first + i + 1 == in.length;
            const int at = i * TILE_CHANNELS + tile.channel;
            const acc_t signal = shared.step[at] * shared.x[at], next_step = shared.next_step[at],
                        from_y = shared.grad[at];
            acc_t from_signal = 0, from_decay = 0, products[2 * LANE_STATES];
            for (int k = 0; k < LANE_STATES; ++k) {
                const int n = i * TILE_STATES + tile.lane + k * CHANNEL_LANES;
                if (!visit.parent_is_next)
                    gradient.value[k] = rows.at(visit, k);
                else if (visit.siblings_sent)
                    rows.at(visit, k) = gradient.value[k];
                if (!root) {
                    gradient.value[k] *= exp(next_step * A.value[k]);
                    const acc_t exponent = gradient.value[k] * state.value[k];
                    from_decay += exponent * A.value[k];
                    A_part.value[k] += next_step * exponent;
                }
                gradient.value[k] += from_y * shared.C[n];
                from_signal += gradient.value[k] * shared.B[n];
                products[k] = signal * gradient.value[k];
                products[LANE_STATES + k] = from_y * state.value[k];
            }
            from_signal = sum_over_lanes(from_signal), from_decay = sum_over_lanes(from_decay);
            const acc_t sum = sum_over_channels(products);
            const int warp = tile.thread / WARP, value = tile.channel % (2 * LANE_STATES);
            shared.sums[((i * TILE_WARPS + warp) * 2 + value / LANE_STATES) * TILE_STATES + tile.lane +
                        value % LANE_STATES * CHANNEL_LANES] = sum;
            __syncwarp();  // all have read x and next_step
            if (tile.lane == 0) shared.x[at] = from_signal, shared.next_step[at] = from_decay;
        }
        for (int k = 0; k < LANE_STATES; ++k) A_sum.value[k] += A_part.value[k];
        __syncthreads();
        stage.for_each_element(shared, first, [&](int e, int32_t token, int64_t c) {
            const int64_t i = (tile.item * in.length + token) * in.channels + c;
            parts.signal[tile.state_tile * in.size() + i] = shared.x[e];
            if (token + 1 < in.length)
                parts.next_step[tile.state_tile * in.size() + i + in.channels] = shared.next_step[e];
        });
        for (int e = tile.thread; e < count * 2 * TILE_STATES; e += TILE_THREADS) {
            const int i = e / (2 * TILE_STATES), value = e % (2 * TILE_STATES);
            const int64_t n = tile.first_state + value % TILE_STATES;
            if (n >= in.states) continue;
            acc_t sum = 0;
            for (int warp = 0; warp < TILE_WARPS; ++warp)
                sum += shared.sums[(i * TILE_WARPS + warp) * 2 * TILE_STATES + value];
            const int64_t row = (tile.channel_tile * in.batch + tile.item) * in.length + shared.visits[i].token;
            (value < TILE_STATES ? parts.B : parts.C)[row * in.states + n] = sum;
        }
        __syncthreads();
    }
    tile.store(in, A_sum, parts.A);
}

constexpr int BLOCK_ROWS = 256;  // tokens of one block of token_scan_finish_kernel

template <class scalar_t, class acc_t = acc_type<scalar_t>>
struct TokenGradients {
    scalar_t *x, *delta;
    acc_t* bias_part;  // (blocks of BLOCK_ROWS tokens, D)
};

// One block adds up the parts of BLOCK_ROWS tokens and WARP channels; its warps take whole rows of them.
template <class scalar_t, class acc_t>
__global__ void token_scan_finish_kernel(TokenInputs<scalar_t> in, GradientParts<acc_t> parts,
                                         TokenGradients<scalar_t> gradients) {
    auto* sums = reinterpret_cast<acc_t*>(shared_memory());
    const int thread = threadIdx.x, lane = thread % WARP, warp = thread / WARP, warps = blockDim.x / WARP;
    const int64_t columns = (in.channels + WARP - 1) / WARP, block = blockIdx.x / columns;
    const int64_t c = blockIdx.x % columns * WARP + lane, rows = in.batch * in.length;
    const int64_t begin = block * BLOCK_ROWS, end = begin + BLOCK_ROWS < rows ? begin + BLOCK_ROWS : rows;
    acc_t bias_sum = 0;
    for (int64_t row = begin + warp; row < end && c < in.channels; row += warps) {
        const int64_t i = row * in.channels + c;
        acc_t from_signal = 0, from_decay = 0;
        for (int64_t part = i; part < in.state_tiles() * in.size(); part += in.size()) {
            from_signal += parts.signal[part];
            if (row % in.length > 0) from_decay += parts.next_step[part];  // the first token follows none
        }
        const acc_t shifted = in.shifted(in.delta[i], c);
        const acc_t grad_step = from_signal * static_cast<acc_t>(in.x[i]) + from_decay;
        const acc_t grad_shifted = grad_step * in.step_slope(shifted);
        gradients.x[i] = static_cast<scalar_t>(from_signal * in.step(shifted));
        gradients.delta[i] = static_cast<scalar_t>(grad_shifted);
        bias_sum += grad_shifted;
    }
    sums[thread] = bias_sum;
    __syncthreads();
    if (warp > 0 || c >= in.channels) return;
    for (int other = 1; other < warps; ++other) bias_sum += sums[other * WARP + lane];
    gradients.bias_part[block * in.channels + c] = bias_sum;
}

}  // namespace grootv
