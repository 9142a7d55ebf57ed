// The two passes of the scan along the paths of a schedule, for one or two signals with the same decay.
//
// A warp takes one chunk of a path for WARP channels. On a path each vertex depends on the one before it through
// x <- b + a x alone, so the chunks of a long path start from 0, the products of their decays tell what a carry would
// have added, and it is added once the carries are known.
#pragma once

#include <type_traits>

#include "cuda/path_schedule.h"
#include "tree_scan.h"

namespace grootv {

// Places whose inputs are read ahead of the recurrence.
constexpr int AHEAD = 8;

// Threads of a block, at most: many where one block fills a multiprocessor's shared memory. A kernel of two signals
// needs twice the registers.
template <class Team>
constexpr int scan_threads(int signals) {
    return std::is_same_v<Team, BlockTeam> ? BLOCK_SCAN_THREADS / signals : SCAN_THREADS;
}

template <class A, int SIGNALS>
struct Values {
    A value[SIGNALS];
};

template <class A>
struct SignalDecay {
    A signal, decay;
};

// Signal and decay as they are given. All rows of a batch lie one after the other.
template <class T>
struct GivenSignal {
    using Element = T;
    using A = typename Accumulator<T>::type;

    const T *input, *decay_rows;
    int64_t channels;

    __device__ SignalDecay<A> both(int64_t row, int64_t c) const {
        return {static_cast<A>(input[row * channels + c]), decay(row, c)};
    }
    __device__ A decay(int64_t row, int64_t c) const { return static_cast<A>(decay_rows[row * channels + c]); }
};

// Sums of all vertices, and what long paths carry from chunk to chunk. A block keeps the sums of its item and its slice
// of the channels in shared memory if they fit.
template <class A, int SIGNALS>
struct Totals {
    A* rows[SIGNALS];
    A* carry[SIGNALS];
    A* product;
    int64_t channels;
    int32_t slice;  // channels that a team takes at once: a power of two, at most WARP
    bool in_shared_memory;
    int64_t stride, first_row, first_channel;

    __device__ A& at(int k, int64_t row, int64_t c) const {
        return rows[k][(row - first_row) * stride + c - first_channel];
    }

    __device__ void take_shared_memory(int64_t vertices) {
        if (!in_shared_memory) return;
        stride = slice, first_row = blockIdx.x * vertices, first_channel = int64_t{blockIdx.y} * slice;
        for (int k = 0; k < SIGNALS; ++k) rows[k] = reinterpret_cast<A*>(shared_memory()) + k * vertices * slice;
    }
};

// The threads of a team in groups that take a slice of the channels each; a block has one slice, the grid takes all.
template <class Team>
struct Groups {
    int64_t rank, count;
    int32_t slice, slices, first_slice, lane;

    __device__ Groups(int64_t channels, int32_t slice)
        : rank(Team::rank() / slice), count(Team::size() / slice), slice(slice), lane(threadIdx.x % slice) {
        const bool one_slice = std::is_same_v<Team, BlockTeam>;
        slices = one_slice ? 1 : static_cast<int32_t>((channels + slice - 1) / slice);
        first_slice = one_slice ? blockIdx.y : 0;
    }

    // Calls task(i, channel) for i = begin ... end - 1 and every channel.
    template <class Task>
    __device__ void for_each(int64_t begin, int64_t end, int64_t channels, Task task) const {
        for (int64_t i = rank; i < (end - begin) * slices; i += count) {
            const int64_t channel = (first_slice + i % slices) * slice + lane;
            if (channel < channels) task(begin + i / slices, channel);
        }
    }
};

// Carries the results of a round from chunk to chunk along its long paths, upwards or downwards, and adds to every
// place what its chunk's carry comes to there. decays.decay(row, channel); finish as in down_pass.
template <class Team, bool UP, int SIGNALS, class A, class Decays, class Finish>
__device__ void add_carries(const PathSchedule& schedule, const PathSchedule::Lists& lists, int round,
                            const Decays& decays, const Totals<A, SIGNALS>& totals, const Finish& finish) {
    const Groups<Team> groups(totals.channels, totals.slice);
    const int64_t channels = totals.channels;
    groups.for_each(lists.long_ptr[round], lists.long_ptr[round + 1], channels, [&](int64_t i, int64_t c) {
        const LongPath path = lists.long_paths[i];
        Values<A, SIGNALS> carry{};
        for (int32_t step = 0; step < path.count; ++step) {
            const int64_t at = int64_t{path.carry + (UP ? path.count - 1 - step : step)} * channels + c;
            for (int k = 0; k < SIGNALS; ++k) {
                const A out = totals.carry[k][at] + totals.product[at] * carry.value[k];
                totals.carry[k][at] = carry.value[k];
                carry.value[k] = out;
            }
        }
    });
    Team::sync();
    groups.for_each(lists.chunk_ptr[round], lists.chunk_ptr[round + 1], channels, [&](int64_t i, int64_t c) {
        const PathChunk chunk = lists.chunks[i];
        if (chunk.index == (UP ? chunk.count - 1 : 0)) return;  // nothing is carried into it
        const int64_t at = int64_t{chunk.carry + chunk.index} * channels + c;
        Values<A, SIGNALS> x, carry;
        for (int k = 0; k < SIGNALS; ++k) x.value[k] = carry.value[k] = totals.carry[k][at];
        A product = 1;
        for (int32_t begin = 0; begin < chunk.length; begin += AHEAD) {
            Values<A, SIGNALS> local[AHEAD];
            A decay[AHEAD];
            int32_t row[AHEAD];
#pragma unroll
            for (int j = 0; j < AHEAD; ++j) {
                if (begin + j >= chunk.length) continue;
                const int32_t place = UP ? chunk.length - 1 - begin - j : begin + j;
                row[j] = schedule.places[chunk.first + place].vertex;
                decay[j] = decays.decay(row[j], c);
                for (int k = 0; k < SIGNALS; ++k) local[j].value[k] = totals.at(k, row[j], c);
            }
#pragma unroll
            for (int j = 0; j < AHEAD; ++j) {
                if (begin + j >= chunk.length) continue;
                const Values<A, SIGNALS> before = x;
                if (!UP) product *= decay[j];
                for (int k = 0; k < SIGNALS; ++k) {
                    x.value[k] = local[j].value[k] + product * carry.value[k];
                    totals.at(k, row[j], c) = x.value[k];
                }
                if (UP) product *= decay[j];
                finish(row[j], c, false, decay[j], before, x);
            }
        }
    });
    Team::sync();
}

// From the leaves to the root: sum = signal + sum over children of decay * sum. signals(row, channel) returns the
// values of all signals and the decay.
template <class Team, int SIGNALS, class A, class Signals>
__device__ void up_pass(const PathSchedule& schedule, const PathSchedule::Lists& lists, const Signals& signals,
                        const Totals<A, SIGNALS>& totals) {
    const Groups<Team> groups(totals.channels, totals.slice);
    const int64_t channels = totals.channels;
    const int32_t vertices = schedule.vertices;
    for (int round = PathSchedule::ROUNDS - 1; round >= 0; --round) {
        if (lists.chunk_ptr[round] == lists.chunk_ptr[round + 1]) continue;
        const bool has_long_paths = lists.long_ptr[round] < lists.long_ptr[round + 1];
        groups.for_each(lists.chunk_ptr[round], lists.chunk_ptr[round + 1], channels, [&](int64_t i, int64_t c) {
            const PathChunk chunk = lists.chunks[i];
            Values<A, SIGNALS> carry{};
            A product = 1;
            for (int32_t end = chunk.length; end > 0; end -= AHEAD) {
                Values<A, SIGNALS> own[AHEAD];
                A decay[AHEAD];
                int32_t row[AHEAD];
#pragma unroll
                for (int j = 0; j < AHEAD; ++j) {
                    if (end - 1 - j < 0) continue;
                    const PathVertex place = schedule.places[chunk.first + end - 1 - j];
                    row[j] = place.vertex;
                    own[j] = signals.values(place.vertex, c, decay[j]);
                    const int32_t* child_vertex = schedule.order;
                    const int32_t item_begin = place.vertex / vertices * vertices;
                    for (int32_t q = place.first_child; q < place.end_child; ++q) {
                        if (q == place.preferred_child) continue;
                        const int64_t child = item_begin + child_vertex[q];
                        const A child_decay = signals.decay(child, c);
                        for (int k = 0; k < SIGNALS; ++k) own[j].value[k] += child_decay * totals.at(k, child, c);
                    }
                }
#pragma unroll
                for (int j = 0; j < AHEAD; ++j) {
                    if (end - 1 - j < 0) continue;
                    for (int k = 0; k < SIGNALS; ++k) {
                        const A sum = own[j].value[k] + carry.value[k];
                        totals.at(k, row[j], c) = sum;
                        carry.value[k] = decay[j] * sum;
                    }
                    product *= decay[j];
                }
            }
            if (chunk.count == 1) return;
            const int64_t at = int64_t{chunk.carry + chunk.index} * channels + c;
            for (int k = 0; k < SIGNALS; ++k) totals.carry[k][at] = carry.value[k];
            totals.product[at] = product;
        });
        Team::sync();
        if (has_long_paths) add_carries<Team, true>(schedule, lists, round, signals, totals, [](auto...) {});
    }
}

// From the root to the leaves: x = part + decay * x above, where at the root x = part. parts(row, channel, decay)
// returns the parts of all signals; x may overwrite what it reads. finish(row, channel, is root, decay, x above, x)
// gets the results.
template <class Team, int SIGNALS, class A, class Parts, class Finish>
__device__ void down_pass(const PathSchedule& schedule, const PathSchedule::Lists& lists, const Parts& parts,
                          const Totals<A, SIGNALS>& totals, const Finish& finish) {
    const Groups<Team> groups(totals.channels, totals.slice);
    const int64_t channels = totals.channels;
    for (int round = 0; round < PathSchedule::ROUNDS; ++round) {
        if (lists.chunk_ptr[round] == lists.chunk_ptr[round + 1]) continue;
        const bool has_long_paths = lists.long_ptr[round] < lists.long_ptr[round + 1];
        groups.for_each(lists.chunk_ptr[round], lists.chunk_ptr[round + 1], channels, [&](int64_t i, int64_t c) {
            const PathChunk chunk = lists.chunks[i];
            const bool is_final = chunk.index == 0, at_root = is_final && chunk.above < 0;
            Values<A, SIGNALS> x{};
            if (is_final && !at_root)
                for (int k = 0; k < SIGNALS; ++k) x.value[k] = totals.at(k, chunk.above, c);
            A product = 1;
            for (int32_t begin = 0; begin < chunk.length; begin += AHEAD) {
                Values<A, SIGNALS> part[AHEAD];
                A decay[AHEAD];
                int32_t row[AHEAD];
#pragma unroll
                for (int j = 0; j < AHEAD; ++j) {
                    if (begin + j >= chunk.length) continue;
                    row[j] = schedule.places[chunk.first + begin + j].vertex;
                    part[j] = parts.values(row[j], c, at_root && begin + j == 0, decay[j]);
                }
#pragma unroll
                for (int j = 0; j < AHEAD; ++j) {
                    if (begin + j >= chunk.length) continue;
                    const Values<A, SIGNALS> above = x;
                    for (int k = 0; k < SIGNALS; ++k) {
                        x.value[k] = part[j].value[k] + decay[j] * above.value[k];
                        totals.at(k, row[j], c) = x.value[k];
                    }
                    product *= decay[j];
                    if (is_final) finish(row[j], c, at_root && begin + j == 0, decay[j], above, x);
                }
            }
            if (chunk.count == 1) return;
            const int64_t at = int64_t{chunk.carry + chunk.index} * channels + c;
            for (int k = 0; k < SIGNALS; ++k) totals.carry[k][at] = x.value[k];
            totals.product[at] = product;
        });
        Team::sync();
        if (has_long_paths) add_carries<Team, false>(schedule, lists, round, parts, totals, finish);
    }
}

// Calls put(row, channel) for every element of the items whose order and parents are no tree in breadth-first order:
// they get NaN, for the device cannot raise an error.
template <class Team, class Put>
__device__ void for_each_invalid(const PathSchedule& schedule, const PathSchedule::Lists& lists, int64_t channels,
                                 int32_t slice, Put put) {
    const int64_t vertices = schedule.vertices;
    for (int64_t item = lists.first_item; item < lists.first_item + lists.items; ++item)
        if (!schedule.valid[item])
            Groups<Team>(channels, slice).for_each(item * vertices, (item + 1) * vertices, channels, put);
}

}  // namespace grootv
