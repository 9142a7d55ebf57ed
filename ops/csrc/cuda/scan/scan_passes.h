// The two passes of the scan along the paths of a schedule, for one or two signals with the same decay.
//
// A group of threads takes a chunk of the schedule, each thread a pack of channels. On a path every vertex depends on
// the one before it through x <- b + a x alone. So the pieces of a long path are passed twice: first from 0, for what
// they make of a carry, and again when the carries are known.
#pragma once

#include <cmath>
#include <type_traits>

#include "cuda/scan/heavy_light.h"
#include "cuda/scan/vector.h"

namespace grootv {

// Steps whose inputs are read ahead of the recurrence: as many as registers hold.
template <int SIGNALS>
constexpr int AHEAD = 8 / SIGNALS;

// A slice of the channels is what a group of threads takes at once: a pack each, of at most 32 channels together.
struct Slices {
    int32_t channels;
    int32_t threads;       // of a group: a power of two
    int32_t first, count;  // those of this launch
};

// A thread's share of a scan. The blocks of a grid team divide the chunks of a slice among them, a block team has one.
// The threads of a warp keep in step: one that has nothing to do repeats another's work, but is not `live`: it leaves
// alone what others write.
template <class Team, class A>
struct Worker {
    __device__ explicit Worker(const Slices& slices)
        : slice(slices.first + static_cast<int32_t>(blockIdx.x) % slices.count),
          member(static_cast<int32_t>(blockIdx.x) / slices.count),
          threads(slices.threads),
          lane(static_cast<int32_t>(threadIdx.x) % threads),
          channels(slices.channels),
          channel((slice * threads + lane) * PACK<A>) {
        const auto groups_of_block = static_cast<int32_t>(blockDim.x) / threads;
        const auto group_of_block = static_cast<int32_t>(threadIdx.x) / threads;
        group = Team::IS_BLOCK ? group_of_block : member * groups_of_block + group_of_block;
        groups = Team::IS_BLOCK ? groups_of_block : static_cast<int32_t>(gridDim.x) / slices.count * groups_of_block;
        exists = channel < channels;
        if (!exists) channel = channels - PACK<A>;
    }

    // Calls task(i, live) for i = begin ... end - 1.
    template <class Task>
    __device__ void for_each(int64_t begin, int64_t end, Task task) const {
        const int32_t in_warp = group % (WARP / threads);
        for (int64_t first = begin + group - in_warp; first < end; first += groups) {
            const int64_t i = first + in_warp;
            task(i < end ? i : end - 1, exists && i < end);
        }
    }

    __device__ int64_t at(int32_t row) const { return int64_t{row} * channels + channel; }

    int32_t slice, member;  // member: the item of a block team, the block of a grid team
    int32_t threads, lane, group, groups;
    int32_t channels, channel;
    bool exists;
};

template <class A, int SIGNALS>
struct Packs {
    Pack<A> signal[SIGNALS];
};

// Sums of all vertices, and what the pieces of long paths carry. A block keeps the sums in shared memory.
template <class Team, class A, int SIGNALS>
struct Totals {
    A* rows[SIGNALS];  // (vertices of the batch, channels) each; of a grid
    A* carry[SIGNALS];
    A* product;
    int32_t vertices;  // of an item

    static int64_t shared_bytes(int64_t vertices, int64_t threads) {
        return SIGNALS * vertices * threads * static_cast<int64_t>(sizeof(Pack<A>));
    }

    __device__ Pack<A>& at(int k, int32_t row, const Worker<Team, A>& worker) const {
        if constexpr (Team::IS_BLOCK) {
            const int32_t place = (k - worker.member) * vertices + row;
            return reinterpret_cast<Pack<A>*>(shared_memory())[place * worker.threads + worker.lane];
        } else {
            return as_pack(rows[k] + worker.at(row));
        }
    }

    __device__ Packs<A, SIGNALS> load(int32_t row, const Worker<Team, A>& worker) const {
        Packs<A, SIGNALS> packs;
        for (int k = 0; k < SIGNALS; ++k) packs.signal[k] = at(k, row, worker);
        return packs;
    }
    __device__ void store(int32_t row, const Worker<Team, A>& worker, const Packs<A, SIGNALS>& packs) const {
        for (int k = 0; k < SIGNALS; ++k) at(k, row, worker) = packs.signal[k];
    }
};

// Calls use(step, input, in_chunk) for the steps of a chunk, from its end up or from its start down, with input =
// read(step). The reads of COUNT steps come before the first use, so that none waits for another; beyond the end of the
// chunk its last step is read again.
template <bool UP, int COUNT, class Read, class Use>
__device__ void walk(const Step* steps, const PathChunk& chunk, Read read, Use use) {
    const int32_t length = chunk.end - chunk.first;
    for (int32_t begin = 0; __any_sync(~0u, begin < length); begin += COUNT) {
        Step step[COUNT];
        decltype(read(step[0])) input[COUNT];
#pragma unroll
        for (int j = 0; j < COUNT; ++j) {
            const int32_t place = begin + j < length ? begin + j : length - 1;
            step[j] = steps[UP ? chunk.end - 1 - place : chunk.first + place];
        }
#pragma unroll
        for (int j = 0; j < COUNT; ++j) input[j] = read(step[j]);
#pragma unroll
        for (int j = 0; j < COUNT; ++j) use(step[j], input[j], begin + j < length);
    }
}

// What a walk knows of the vertex before it, and the product of the decays since its start.
template <class A, int SIGNALS>
struct Carry {
    Packs<A, SIGNALS> x{};
    Pack<A> product = filled(A{1});
};

// Turns what the pieces of a round's long paths made of 0 into what is carried into them.
template <bool UP, class Team, class A, int SIGNALS>
__device__ void join_pieces(const PathSchedule::Lists& lists, int round, const Worker<Team, A>& worker,
                            const Totals<Team, A, SIGNALS>& totals) {
    constexpr int COUNT = AHEAD<SIGNALS>;
    worker.for_each(lists.rounds->long_paths[round], lists.rounds->long_paths[round + 1], [&](int64_t i, bool live) {
        if (!live) return;
        const LongPath path = lists.long_paths[i];
        Packs<A, SIGNALS> carry{};
        for (int32_t begin = 0; begin < path.count; begin += COUNT) {
            Carry<A, SIGNALS> made[COUNT];
            int64_t at[COUNT];
#pragma unroll
            for (int j = 0; j < COUNT; ++j) {
                const int32_t piece = begin + j < path.count ? begin + j : path.count - 1;
                at[j] = worker.at(path.carry + (UP ? path.count - 1 - piece : piece));
                for (int k = 0; k < SIGNALS; ++k) made[j].x.signal[k] = as_pack(totals.carry[k] + at[j]);
                made[j].product = as_pack(totals.product + at[j]);
            }
#pragma unroll
            for (int j = 0; j < COUNT; ++j) {
                for (int k = 0; k < SIGNALS; ++k) {
                    if (begin + j < path.count) as_pack(totals.carry[k] + at[j]) = carry.signal[k];
                    carry.signal[k] = map<A>([](A product, A carry, A x) { return std::fma(product, carry, x); },
                                             made[j].product, carry.signal[k], made[j].x.signal[k]);
                }
            }
        }
    });
}

// Passes the chunks of a round, in which pieces of long paths are joined first. pass(chunk, live, carry, is_final)
template <bool UP, class Team, class A, int SIGNALS, class Pass>
__device__ void pass_round(const PathSchedule::Lists& lists, int round, const Worker<Team, A>& worker,
                           const Totals<Team, A, SIGNALS>& totals, Pass pass) {
    const int32_t begin = lists.rounds->chunks[round], end = lists.rounds->chunks[round + 1];
    const int32_t pieces_end = lists.rounds->whole_paths[round];
    if (begin < pieces_end) {
        worker.for_each(begin, pieces_end, [&](int64_t i, bool live) {
            const PathChunk chunk = lists.chunks[i];
            Carry<A, SIGNALS> carry;
            pass(chunk, live, carry, std::false_type{});
            if (!live) return;
            const int64_t at = worker.at(chunk.carry);
            for (int k = 0; k < SIGNALS; ++k) as_pack(totals.carry[k] + at) = carry.x.signal[k];
            as_pack(totals.product + at) = carry.product;
        });
        Team::sync();
        join_pieces<UP>(lists, round, worker, totals);
        Team::sync();
    }
    worker.for_each(begin, end, [&](int64_t i, bool live) {
        const PathChunk chunk = lists.chunks[i];
        Carry<A, SIGNALS> carry;
        if (chunk.carry >= 0)
            for (int k = 0; k < SIGNALS; ++k) carry.x.signal[k] = as_pack(totals.carry[k] + worker.at(chunk.carry));
        pass(chunk, live && chunk.first < chunk.end, carry, std::true_type{});
    });
    if (begin < end) Team::sync();
}

// From the leaves to the root: sum = signal + sum over children of decay * sum. signals.read(row) returns what
// signals.decay(input) and signals.values(input) take; finish(row, sum, live) gets the results.
template <class Team, class A, int SIGNALS, class Signals, class Finish>
__device__ void up_pass(const PathSchedule::Lists& lists, const Worker<Team, A>& worker, const Signals& signals,
                        const Totals<Team, A, SIGNALS>& totals, Finish finish) {
    struct Input {
        typename Signals::Input signals;
        Packs<A, SIGNALS> row;  // what a light child has left there, or a light child's own sum
    };
    auto pass = [&](const PathChunk& chunk, bool live, Carry<A, SIGNALS>& carry, auto is_final) {
        auto read = [&](Step step) {
            Input input{signals.read(step.vertex()), {}};
            if (live && (step.is_fed() || step.is_light_child())) input.row = totals.load(step.vertex(), worker);
            return input;
        };
        walk<true, AHEAD<SIGNALS>>(lists.steps, chunk, read, [&](Step step, const Input& input, bool in_chunk) {
            const Pack<A> decay = signals.decay(input.signals);
            const Packs<A, SIGNALS> own = signals.values(input.signals);
            const bool is_vertex = !step.is_light_child();
            Packs<A, SIGNALS> sum, next;
            for (int k = 0; k < SIGNALS; ++k) {
                const Pack<A> below = step.is_bottom() ? Pack<A>{} : carry.x.signal[k];
                sum.signal[k] = map<A>([](A own, A row, A below) { return own + row + below; }, own.signal[k],
                                       input.row.signal[k], below);
                next.signal[k] = map<A>([=](A decay, A sum, A row,
                                            A below) { return is_vertex ? decay * sum : std::fma(decay, row, below); },
                                        decay, sum.signal[k], input.row.signal[k], below);
            }
            if (in_chunk) {
                carry.x = next;
                if (is_vertex) carry.product = carry.product * decay;
            }
            if constexpr (decltype(is_final)::value) {
                const bool vertex_live = live && in_chunk && is_vertex;
                if (vertex_live) totals.store(step.vertex(), worker, sum);
                if (vertex_live && step.feeds()) totals.store(step.above(), worker, next);
                finish(step.vertex(), sum, vertex_live);
            }
        });
    };
    for (int round = PathSchedule::ROUNDS - 1; round >= 0; --round)
        pass_round<true>(lists, round, worker, totals, pass);
}

// From the root to the leaves: x = part + decay * x above, with a decay of 0 at the root. parts.read(row, live) returns
// what parts.decay(input) and parts.values(input, decay) take; it may read the totals, which get those results that
// light children need. finish.read(row) is read with it; finish(step, both inputs, decay, x above, x, live) gets the
// results.
template <class Team, class A, int SIGNALS, class Parts, class Finish>
__device__ void down_pass(const PathSchedule::Lists& lists, const Worker<Team, A>& worker, const Parts& parts,
                          const Totals<Team, A, SIGNALS>& totals, Finish& finish) {
    struct Input {
        typename Parts::Input parts;
        typename Finish::Input finish;
        Packs<A, SIGNALS> above;  // of a top
    };
    auto pass = [&](const PathChunk& chunk, bool live, Carry<A, SIGNALS>& carry, auto is_final) {
        auto read = [&](Step step) {
            Input input{parts.read(step.vertex(), live), {}, {}};
            if constexpr (decltype(is_final)::value) input.finish = finish.read(step.vertex());
            if (live && step.is_top() && !step.is_root()) input.above = totals.load(step.above(), worker);
            return input;
        };
        walk<false, AHEAD<SIGNALS>>(lists.steps, chunk, read, [&](Step step, const Input& input, bool in_chunk) {
            const Pack<A> decay = step.is_root() ? Pack<A>{} : parts.decay(input.parts);
            const Packs<A, SIGNALS> part = parts.values(input.parts, decay);
            const bool is_vertex = !step.is_light_child();
            Packs<A, SIGNALS> above, x;
            for (int k = 0; k < SIGNALS; ++k) {
                above.signal[k] = step.is_top() ? input.above.signal[k] : carry.x.signal[k];
                x.signal[k] = map<A>([](A decay, A above, A part) { return std::fma(decay, above, part); }, decay,
                                     above.signal[k], part.signal[k]);
            }
            if (in_chunk && is_vertex) {
                carry.x = x;
                carry.product = carry.product * decay;
            }
            if constexpr (decltype(is_final)::value) {
                const bool vertex_live = live && in_chunk && is_vertex;
                if (vertex_live && step.is_fed()) totals.store(step.vertex(), worker, x);
                finish(step, input.parts, input.finish, decay, above, x, vertex_live);
            }
        });
    };
    for (int round = 0; round < PathSchedule::ROUNDS; ++round) pass_round<false>(lists, round, worker, totals, pass);
}

// Calls put(row, live) for the vertices of the items whose order and parents are no tree in breadth-first order: they
// get NaN, for the device cannot raise an error.
template <class Team, class A, class Put>
__device__ void for_each_invalid(const PathSchedule& schedule, const PathSchedule::Lists& lists,
                                 const Worker<Team, A>& worker, Put put) {
    const int64_t vertices = schedule.vertices;
    for (int64_t item = lists.first_item; item < lists.first_item + lists.items; ++item)
        if (!schedule.valid[item])
            worker.for_each(item * vertices, (item + 1) * vertices,
                            [&](int64_t row, bool live) { put(static_cast<int32_t>(row), live); });
}

}  // namespace grootv
