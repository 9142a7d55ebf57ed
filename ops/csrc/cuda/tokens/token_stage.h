// A scan over tokens, block by block: what a thread works on, and how its inputs get into shared memory.
//
// A block takes TILE_CHANNELS channels and TILE_STATES states of an item; a few lanes share the states of a channel. It
// has the inputs of STAGE_TOKENS tokens of the walk in shared memory, and loads those of the next ones meanwhile.
#pragma once

#include <cmath>

#include "cuda/scan/softplus.h"
#include "cuda/tokens/token_walk.h"
#include "tree_scan.h"

namespace grootv {

constexpr int CHANNEL_LANES = 4;  // lanes of a channel
constexpr int LANE_STATES = 4;    // states of a lane: lane l has the states l, l + CHANNEL_LANES ...
constexpr int TILE_STATES = CHANNEL_LANES * LANE_STATES, TILE_CHANNELS = 32, STAGE_TOKENS = 16;
constexpr int TILE_THREADS = TILE_CHANNELS * CHANNEL_LANES, TILE_WARPS = TILE_THREADS / WARP;
constexpr int STAGED_CHANNELS = STAGE_TOKENS * TILE_CHANNELS, STAGED_STATES = STAGE_TOKENS * TILE_STATES;

// x and delta: (B, L, D), B and C: (B, L, N), A: (D, N).
template <class scalar_t, class acc_t = acc_type<scalar_t>>
struct TokenInputs {
    const scalar_t *x, *delta, *B, *C;
    const acc_t *A, *bias;
    bool with_softplus;
    TokenWalks walks;
    int64_t batch, channels, states;
    int32_t length;

    __device__ acc_t shifted(scalar_t delta, int64_t c) const {
        return bias && c < channels ? static_cast<acc_t>(delta) + bias[c] : static_cast<acc_t>(delta);
    }
    __device__ acc_t step(acc_t shifted) const { return with_softplus ? softplus(shifted) : shifted; }
    __device__ acc_t step_slope(acc_t shifted) const { return with_softplus ? softplus_slope(shifted) : acc_t{1}; }

    __host__ __device__ int64_t size() const { return batch * length * channels; }
    __host__ __device__ int64_t channel_tiles() const { return (channels + TILE_CHANNELS - 1) / TILE_CHANNELS; }
    __host__ __device__ int64_t state_tiles() const { return (states + TILE_STATES - 1) / TILE_STATES; }
    __host__ __device__ int64_t blocks() const { return state_tiles() * batch * channel_tiles(); }
    // Of a lane's states, those that any block uses.
    __host__ __device__ int used() const {
        return states < TILE_STATES ? static_cast<int>((states + CHANNEL_LANES - 1) / CHANNEL_LANES) : LANE_STATES;
    }
};

template <class acc_t>
struct LaneStates {
    acc_t value[LANE_STATES];
};

// The channels and states of a block, and those of the thread.
struct TokenTile {
    template <class scalar_t>
    __device__ explicit TokenTile(const TokenInputs<scalar_t>& in)
        : channel_tile(blockIdx.x % in.channel_tiles()),
          item(blockIdx.x / in.channel_tiles() % in.batch),
          state_tile(blockIdx.x / in.channel_tiles() / in.batch),
          first_channel(channel_tile * TILE_CHANNELS),
          first_state(state_tile * TILE_STATES),
          thread(static_cast<int>(threadIdx.x)),
          lane(thread % CHANNEL_LANES),
          channel(thread / CHANNEL_LANES) {}

    // Calls use(k, i) for the lane's states that exist, at i of an array (items, D, N).
    template <class scalar_t, class Use>
    __device__ void for_each_state(const TokenInputs<scalar_t>& in, int64_t item, Use use) const {
        const int64_t c = first_channel + channel, first = first_state + lane;
        for (int k = 0; k < LANE_STATES; ++k)
            if (c < in.channels && first + k * CHANNEL_LANES < in.states)
                use(k, (item * in.channels + c) * in.states + first + k * CHANNEL_LANES);
    }

    template <class scalar_t, class acc_t>
    __device__ LaneStates<acc_t> load(const TokenInputs<scalar_t>& in, const acc_t* from, int64_t item) const {
        LaneStates<acc_t> own{};
        for_each_state(in, item, [&](int k, int64_t i) { own.value[k] = from[i]; });
        return own;
    }

    template <class scalar_t, class acc_t>
    __device__ void store(const TokenInputs<scalar_t>& in, const LaneStates<acc_t>& own, acc_t* to) const {
        for_each_state(in, item, [&](int k, int64_t i) { to[i] = own.value[k]; });
    }

    int64_t channel_tile, item, state_tile, first_channel, first_state;
    int thread, lane, channel;
};

// The inputs of STAGE_TOKENS places of the walk, by place and channel or by place and state.
template <class acc_t>
struct StagedTokens {
    acc_t x[STAGED_CHANNELS], step[STAGED_CHANNELS], next_step[STAGED_CHANNELS];  // next_step: the following token's
    acc_t B[STAGED_STATES], C[STAGED_STATES];
    TokenVisit visits[STAGE_TOKENS];
};

template <class acc_t>
struct StagedTokensBackward : StagedTokens<acc_t> {
    acc_t grad[STAGED_CHANNELS];
    acc_t sums[TILE_WARPS * 2 * STAGED_STATES];  // of the channels of a warp, for B and C
};

// A thread's part of them in registers: the same places and channels each time, so that the results which replace them
// are its own too.
template <class scalar_t, bool WITH_GRAD>
class TokenStage {
public:
    using acc_t = acc_type<scalar_t>;

    __device__ TokenStage(const TokenInputs<scalar_t>& in, const TokenTile& tile, const scalar_t* grad = nullptr)
        : in_(in), tile_(tile), grads_(grad), visits_(in.walks.visits + tile.item * in.length) {}

    __device__ void load(int32_t first) {
        for (int j = 0; j < CHANNEL_ELEMENTS; ++j) {
            const int32_t p = first + place_of(j);
            x_[j] = delta_[j] = next_delta_[j] = scalar_t(0);
            if constexpr (WITH_GRAD) grad_[j] = scalar_t(0);
            if (p >= in_.length || channel_of(j) >= in_.channels) continue;
            const int32_t token = visits_[p].token;
            const int64_t i = (tile_.item * in_.length + token) * in_.channels + channel_of(j);
            x_[j] = in_.x[i];
            delta_[j] = in_.delta[i];
            if (token + 1 < in_.length) next_delta_[j] = in_.delta[i + in_.channels];
            if constexpr (WITH_GRAD) grad_[j] = grads_[i];
        }
        for (int j = 0; j < STATE_ELEMENTS; ++j) {
            const int e = tile_.thread + j * TILE_THREADS;
            const int32_t p = first + e / TILE_STATES;
            const int64_t n = tile_.first_state + e % TILE_STATES;
            B_[j] = C_[j] = scalar_t(0);
            if (p >= in_.length || n >= in_.states) continue;
            const int64_t i = (tile_.item * in_.length + visits_[p].token) * in_.states + n;
            B_[j] = in_.B[i];
            C_[j] = in_.C[i];
        }
        if (tile_.thread < STAGE_TOKENS && first + tile_.thread < in_.length) visit_ = visits_[first + tile_.thread];
    }

    template <class To>
    __device__ void store(To& shared) const {
        const bool valid = in_.walks.valid[tile_.item];
        for (int j = 0; j < CHANNEL_ELEMENTS; ++j) {
            const int e = tile_.thread + j * TILE_THREADS;
            shared.x[e] = static_cast<acc_t>(x_[j]);
            shared.step[e] = valid ? step(delta_[j], j) : acc_t(NAN);
            shared.next_step[e] = valid ? step(next_delta_[j], j) : acc_t(NAN);
            if constexpr (WITH_GRAD) shared.grad[e] = valid ? static_cast<acc_t>(grad_[j]) : acc_t(NAN);
        }
        for (int j = 0; j < STATE_ELEMENTS; ++j) {
            const int e = tile_.thread + j * TILE_THREADS;
            shared.B[e] = static_cast<acc_t>(B_[j]);
            shared.C[e] = static_cast<acc_t>(C_[j]);
        }
        if (tile_.thread < STAGE_TOKENS) shared.visits[tile_.thread] = visit_;
    }

    // Calls put(e, token, channel) for the thread's elements of an array by place and channel that exist.
    template <class To, class Put>
    __device__ void for_each_element(const To& shared, int32_t first, Put put) const {
        for (int j = 0; j < CHANNEL_ELEMENTS; ++j)
            if (first + place_of(j) < in_.length && channel_of(j) < in_.channels)
                put(tile_.thread + j * TILE_THREADS, shared.visits[place_of(j)].token, channel_of(j));
    }

private:
    static constexpr int CHANNEL_ELEMENTS = STAGED_CHANNELS / TILE_THREADS,
                         STATE_ELEMENTS = STAGED_STATES / TILE_THREADS;
    static_assert(STAGED_CHANNELS % TILE_THREADS == 0 && STAGED_STATES % TILE_THREADS == 0);

    __device__ int place_of(int j) const { return (tile_.thread + j * TILE_THREADS) / TILE_CHANNELS; }
    __device__ int64_t channel_of(int j) const {
        return tile_.first_channel + (tile_.thread + j * TILE_THREADS) % TILE_CHANNELS;
    }
    __device__ acc_t step(scalar_t delta, int j) const { return in_.step(in_.shifted(delta, channel_of(j))); }

    const TokenInputs<scalar_t>& in_;
    const TokenTile& tile_;
    const scalar_t* grads_;
    const TokenVisit* visits_;
    scalar_t x_[CHANNEL_ELEMENTS], delta_[CHANNEL_ELEMENTS], next_delta_[CHANNEL_ELEMENTS],
        grad_[WITH_GRAD ? CHANNEL_ELEMENTS : 1];
    scalar_t B_[STATE_ELEMENTS], C_[STATE_ELEMENTS];
    TokenVisit visit_{};
};

}  // namespace grootv
