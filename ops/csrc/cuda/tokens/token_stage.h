// A scan over tokens, block by block: what a thread works on, and the way of its inputs into shared memory.
//
// A block takes CHANNELS channels and STATES states of an item; a few lanes share the states of a channel. What the
// next TOKENS tokens of the walk need lies in shared memory, that of those after them is on its way there.
#pragma once

#include <cmath>

#include "cuda/scan/softplus.h"
#include "cuda/tokens/token_walk.h"
#include "tree_scan.h"

namespace grootv {

constexpr int GROUP = 4;             // lanes of a channel
constexpr int OWN = 4;               // states of a lane: lane l has the states l, l + GROUP ...
constexpr int STATES = GROUP * OWN;  // of a block
constexpr int CHANNELS = 32, TOKENS = 16;
constexpr int THREADS = CHANNELS * GROUP;
constexpr int WARPS = THREADS / WARP;

// x and delta: (B, L, D), B and C: (B, L, N), A: (D, N).
template <class T, class A = acc_type<T>>
struct TokenInputs {
    const T *x, *delta, *write, *read;  // write and read: B and C
    const A *rate, *bias;               // A and delta_bias
    bool with_softplus;
    TokenWalks walks;
    int64_t batch, channels, states;
    int32_t length;

    __device__ A shifted(T delta, int64_t c) const {
        return bias && c < channels ? static_cast<A>(delta) + bias[c] : static_cast<A>(delta);
    }
    __device__ A step(A shifted) const { return with_softplus ? softplus(shifted) : shifted; }
    __device__ A step_slope(A shifted) const { return with_softplus ? softplus_slope(shifted) : A{1}; }

    __host__ __device__ int64_t size() const { return batch * length * channels; }
    __host__ __device__ int64_t channel_blocks() const { return (channels + CHANNELS - 1) / CHANNELS; }
    __host__ __device__ int64_t state_blocks() const { return (states + STATES - 1) / STATES; }
    __host__ __device__ int64_t blocks() const { return state_blocks() * batch * channel_blocks(); }
    // Of a lane's states, those that any block uses.
    __host__ __device__ int used() const {
        return states < STATES ? static_cast<int>((states + GROUP - 1) / GROUP) : OWN;
    }
};

template <class A>
struct OwnStates {
    A value[OWN];
};

// Where a block works, and its thread within.
struct TokenPlace {
    template <class T>
    __device__ explicit TokenPlace(const TokenInputs<T>& in)
        : channel_block(blockIdx.x % in.channel_blocks()),
          item(blockIdx.x / in.channel_blocks() % in.batch),
          state_block(blockIdx.x / in.channel_blocks() / in.batch),
          first_channel(channel_block * CHANNELS),
          first_state(state_block * STATES),
          thread(static_cast<int>(threadIdx.x)),
          lane(thread % GROUP),
          channel(thread / GROUP) {}

    // Calls use(k, i) for the lane's states that exist, at i of an array (items, D, N).
    template <class T, class Use>
    __device__ void for_each_state(const TokenInputs<T>& in, int64_t item, Use use) const {
        const int64_t c = first_channel + channel, first = first_state + lane;
        for (int k = 0; k < OWN; ++k)
            if (c < in.channels && first + k * GROUP < in.states)
                use(k, (item * in.channels + c) * in.states + first + k * GROUP);
    }

    template <class T, class A>
    __device__ OwnStates<A> load(const TokenInputs<T>& in, const A* from, int64_t item) const {
        OwnStates<A> own{};
        for_each_state(in, item, [&](int k, int64_t i) { own.value[k] = from[i]; });
        return own;
    }

    template <class T, class A>
    __device__ void store(const TokenInputs<T>& in, const OwnStates<A>& own, A* to) const {
        for_each_state(in, item, [&](int k, int64_t i) { to[i] = own.value[k]; });
    }

    int64_t channel_block, item, state_block, first_channel, first_state;
    int thread, lane, channel;
};

// The inputs of TOKENS places of the walk, by place and channel or by place and state.
template <class A>
struct TokenShared {
    A x[TOKENS * CHANNELS], step[TOKENS * CHANNELS], next_step[TOKENS * CHANNELS];  // next_step: the following token's
    A write[TOKENS * STATES], read[TOKENS * STATES];
    Visit visits[TOKENS];
};

template <class A>
struct TokenSharedBackward : TokenShared<A> {
    A grad[TOKENS * CHANNELS];
    A sums[TOKENS * WARPS * 2 * STATES];  // of the channels of a warp, for write and read
};

// A thread's part of them on the way there: the same places and channels each time, so that results in their stead
// are its own too.
template <class T, bool WITH_GRAD>
class TokenStage {
public:
    using A = acc_type<T>;

    __device__ TokenStage(const TokenInputs<T>& in, const TokenPlace& place, const T* grad = nullptr)
        : in_(in), place_(place), grads_(grad), visits_(in.walks.visits + place.item * in.length) {}

    __device__ void load(int32_t first) {
        for (int j = 0; j < PARTS; ++j) {
            const int32_t p = first + place_of(j);
            x_[j] = delta_[j] = next_delta_[j] = T(0);
            if constexpr (WITH_GRAD) grad_[j] = T(0);
            if (p >= in_.length || channel_of(j) >= in_.channels) continue;
            const int32_t token = visits_[p].token;
            const int64_t i = (place_.item * in_.length + token) * in_.channels + channel_of(j);
            x_[j] = in_.x[i];
            delta_[j] = in_.delta[i];
            if (token + 1 < in_.length) next_delta_[j] = in_.delta[i + in_.channels];
            if constexpr (WITH_GRAD) grad_[j] = grads_[i];
        }
        for (int j = 0; j < STATE_PARTS; ++j) {
            const int e = place_.thread + j * THREADS;
            const int32_t p = first + e / STATES;
            const int64_t n = place_.first_state + e % STATES;
            write_[j] = read_[j] = T(0);
            if (p >= in_.length || n >= in_.states) continue;
            const int64_t i = (place_.item * in_.length + visits_[p].token) * in_.states + n;
            write_[j] = in_.write[i];
            read_[j] = in_.read[i];
        }
        if (place_.thread < TOKENS && first + place_.thread < in_.length) visit_ = visits_[first + place_.thread];
    }

    template <class To>
    __device__ void store(To& shared) const {
        const bool valid = in_.walks.valid[place_.item];
        for (int j = 0; j < PARTS; ++j) {
            const int e = place_.thread + j * THREADS;
            shared.x[e] = static_cast<A>(x_[j]);
            shared.step[e] = valid ? step(delta_[j], j) : A(NAN);
            shared.next_step[e] = valid ? step(next_delta_[j], j) : A(NAN);
            if constexpr (WITH_GRAD) shared.grad[e] = valid ? static_cast<A>(grad_[j]) : A(NAN);
        }
        for (int j = 0; j < STATE_PARTS; ++j) {
            const int e = place_.thread + j * THREADS;
            shared.write[e] = static_cast<A>(write_[j]);
            shared.read[e] = static_cast<A>(read_[j]);
        }
        if (place_.thread < TOKENS) shared.visits[place_.thread] = visit_;
    }

    // Calls put(e, token, channel) for the thread's entries of an array by place and channel that exist.
    template <class To, class Put>
    __device__ void for_each_entry(const To& shared, int32_t first, Put put) const {
        for (int j = 0; j < PARTS; ++j)
            if (first + place_of(j) < in_.length && channel_of(j) < in_.channels)
                put(place_.thread + j * THREADS, shared.visits[place_of(j)].token, channel_of(j));
    }

private:
    static constexpr int PARTS = TOKENS * CHANNELS / THREADS, STATE_PARTS = TOKENS * STATES / THREADS;
    static_assert(PARTS * THREADS == TOKENS * CHANNELS && STATE_PARTS * THREADS == TOKENS * STATES);

    __device__ int place_of(int j) const { return (place_.thread + j * THREADS) / CHANNELS; }
    __device__ int64_t channel_of(int j) const {
        return place_.first_channel + (place_.thread + j * THREADS) % CHANNELS;
    }
    __device__ A step(T delta, int j) const { return in_.step(in_.shifted(delta, channel_of(j))); }

    const TokenInputs<T>& in_;
    const TokenPlace& place_;
    const T* grads_;
    const Visit* visits_;
    T x_[PARTS], delta_[PARTS], next_delta_[PARTS], grad_[WITH_GRAD ? PARTS : 1];
    T write_[STATE_PARTS], read_[STATE_PARTS];
    Visit visit_{};
};

}  // namespace grootv
