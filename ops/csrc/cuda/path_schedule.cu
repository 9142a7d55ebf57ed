#include "cuda/path_schedule.h"

#include "cuda/subtrees.h"

namespace grootv {
namespace {

// Scratch of the schedule.
struct Scratch {
    static constexpr int COUNTERS = 4 * PathSchedule::ROUNDS + 2;

    int32_t *length, *round, *first_place;  // of the path, at the position of its top
    int32_t* counters;
};

// Of one list of the schedule.
struct Counters {
    __device__ explicit Counters(int32_t* first)
        : chunks(first),
          long_paths(chunks + PathSchedule::ROUNDS),
          next_chunk(long_paths + PathSchedule::ROUNDS),
          next_long_path(next_chunk + PathSchedule::ROUNDS),
          places(next_long_path + PathSchedule::ROUNDS),
          carries(places + 1) {}

    int32_t *chunks, *long_paths, *next_chunk, *next_long_path;  // by round
    int32_t *places, *carries;
};

__device__ int32_t chunks_of(int32_t length) {
    return (length + PathChunk::LENGTH - 1) / PathChunk::LENGTH;
}

template <class Team>
__global__ void __launch_bounds__(TEAM_THREADS, 1)
    path_schedule_kernel(PathSchedule schedule, Subtrees trees, Scratch scratch) {
    const int32_t vertices = schedule.vertices, item = schedule.shared_by_all ? 0 : blockIdx.x;
    const auto lists = schedule.lists(item);
    const int64_t begin = int64_t{lists.first_item} * vertices, count = int64_t{lists.items} * vertices;
    const int32_t* order = schedule.order;
    const int32_t* valid = schedule.valid;
    Counters counters(scratch.counters + int64_t{lists.first_item} * Scratch::COUNTERS);

    for_each<Team>(Scratch::COUNTERS, [=](int64_t i) { counters.chunks[i] = 0; });
    trees.measure<Team>(lists.first_item, lists.items);
    Link *links = trees.links + 2 * begin, *spare = trees.spare + 2 * begin;

    // Every vertex finds the top of its path and its distance from it; the lowest one tells the length.
    for_each<Team>(count, [=](int64_t i) {
        const int32_t p = static_cast<int32_t>(begin + i), above = trees.parent_of(p);
        const bool top = p == above || trees.preferred_child(above) != p;
        links[i] = {top ? p : above, top ? 0 : 1};
    });
    Team::sync();
    const Link* path = rank_lists<Team>(links, spare, begin, count, vertices);
    for_each<Team>(count, [=](int64_t i) {
        const int32_t p = static_cast<int32_t>(begin + i);
        if (trees.preferred_child(p) < 0) scratch.length[path[i].next] = path[i].distance + 1;
    });
    Team::sync();

    // Tops count the rounds above them and take places for their path.
    auto is_top = [=](int64_t i) { return path[i].next == begin + i && valid[(begin + i) / vertices]; };
    for_each<Team>(count, [=](int64_t i) {
        if (!is_top(i)) return;
        const int32_t p = static_cast<int32_t>(begin + i), root = trees.root_of(p), length = scratch.length[p];
        int32_t round = 0;
        for (int32_t top = p; top != root; ++round) top = path[trees.parent_of(top) - begin].next;
        scratch.round[p] = round;
        scratch.first_place[p] = static_cast<int32_t>(begin) + atomicAdd(counters.places, length);
        atomicAdd(counters.chunks + round, chunks_of(length));
        if (chunks_of(length) > 1) atomicAdd(counters.long_paths + round, 1);
    });
    Team::sync();
    int32_t* round_ptr = schedule.round_ptr + int64_t{lists.first_item} * 2 * (PathSchedule::ROUNDS + 1);
    for_each<Team>(2, [=](int64_t which) {
        const int32_t* number = which == 0 ? counters.chunks : counters.long_paths;
        int32_t* next = which == 0 ? counters.next_chunk : counters.next_long_path;
        int32_t* ptr = round_ptr + which * (PathSchedule::ROUNDS + 1);
        int32_t sum = 0;
        for (int round = 0; round < PathSchedule::ROUNDS; ++round) {
            ptr[round] = next[round] = sum;
            sum += number[round];
        }
        ptr[PathSchedule::ROUNDS] = sum;
    });
    Team::sync();
    for_each<Team>(count, [=](int64_t i) {
        if (!is_top(i)) return;
        const int32_t p = static_cast<int32_t>(begin + i), root = trees.root_of(p), length = scratch.length[p];
        const int32_t chunks = chunks_of(length), round = scratch.round[p];
        int32_t carry = 0;
        if (chunks > 1) {
            const int64_t first = lists.first_item * PathSchedule::carries_of_one(vertices);
            carry = static_cast<int32_t>(first) + atomicAdd(counters.carries, chunks);
            schedule.long_paths[begin + atomicAdd(counters.next_long_path + round, 1)] = {carry, chunks};
        }
        const int32_t above = p == root ? -1 : root + order[trees.above[p]];
        const int64_t to = begin + atomicAdd(counters.next_chunk + round, chunks);
        for (int32_t k = 0; k < chunks; ++k) {
            const int32_t first = k * PathChunk::LENGTH, rest = length - first;
            schedule.chunks[to + k] = {scratch.first_place[p] + first,
                                       rest < PathChunk::LENGTH ? rest : PathChunk::LENGTH,
                                       above,
                                       k,
                                       chunks,
                                       carry};
        }
    });
    for_each<Team>(count, [=](int64_t i) {
        const int32_t p = static_cast<int32_t>(begin + i);
        if (!valid[p / vertices]) return;
        schedule.places[scratch.first_place[path[i].next] + path[i].distance] = {
            trees.root_of(p) + order[p], trees.first_child[p], trees.end_child[p], trees.preferred_child(p)};
    });
}

}  // namespace

PathSchedule schedule_paths(const Device& device, Workspace& workspace, const int32_t* order, const int32_t* parent,
                            int64_t batch, int64_t vertices) {
    const int64_t count = batch * vertices;
    auto take = [&](int64_t size) { return workspace.take<int32_t>(size); };
    const Subtrees trees(workspace, order, parent, batch, vertices);
    PathSchedule schedule{!one_block_each(device, batch, vertices),
                          static_cast<int32_t>(batch),
                          static_cast<int32_t>(vertices),
                          workspace.take<PathVertex>(count),
                          workspace.take<PathChunk>(count),
                          workspace.take<LongPath>(count),
                          take(batch * 2 * (PathSchedule::ROUNDS + 1)),
                          order,
                          trees.valid};
    Scratch scratch{take(count), take(count), take(count), take(batch * Scratch::COUNTERS)};
    if (schedule.shared_by_all)
        device.launch_cooperative(path_schedule_kernel<GridTeam>, count, TEAM_THREADS, 0, schedule, trees, scratch);
    else
        device.launch(path_schedule_kernel<BlockTeam>, dim3(static_cast<unsigned>(batch)), TEAM_THREADS, 0, schedule,
                      trees, scratch);
    return schedule;
}

}  // namespace grootv
