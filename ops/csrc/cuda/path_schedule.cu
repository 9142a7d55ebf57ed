#include "cuda/path_schedule.h"

#include "cuda/list_ranking.h"

namespace grootv {
namespace {

// Size of a subtree and its top, the first of equal sizes the greatest; 0 for a leaf.
using Choice = unsigned long long;

__device__ Choice choice_of(int32_t size, int32_t top) {
    return static_cast<Choice>(size) << 32 | ~static_cast<uint32_t>(top);
}

__device__ int32_t preferred_child(Choice choice) {
    return choice == 0 ? -1 : static_cast<int32_t>(~static_cast<uint32_t>(choice));
}

// Scratch of the schedule, by position in breadth-first order, which counts through the whole batch.
struct Scratch {
    static constexpr int COUNTERS = 4 * PathSchedule::ROUNDS + 2;

    int32_t* position;  // by vertex
    int32_t* parent;    // position; the root's own
    int32_t *first_child, *end_child;
    Choice* choice;                         // of the preferred child
    Link *links, *spare;                    // two for each position
    int32_t *length, *round, *first_place;  // of the path, at its top
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
    path_schedule_kernel(PathSchedule schedule, const int32_t* parent, Scratch scratch) {
    const int32_t vertices = schedule.vertices, item = schedule.shared_by_all ? 0 : blockIdx.x;
    const auto lists = schedule.lists(item);
    const int64_t begin = int64_t{lists.first_item} * vertices, count = int64_t{lists.items} * vertices;
    const int32_t* order = schedule.order;
    int32_t* valid = schedule.valid;
    Counters counters(scratch.counters + int64_t{lists.first_item} * Scratch::COUNTERS);
    auto root_of = [=](int64_t position) { return static_cast<int32_t>(position / vertices * vertices); };

    // Positions, and whether every vertex has one.
    for_each<Team>(Scratch::COUNTERS, [=](int64_t i) { counters.chunks[i] = 0; });
    for_each<Team>(lists.items, [=](int64_t i) { valid[lists.first_item + i] = 1; });
    for_each<Team>(count, [=](int64_t i) { scratch.position[begin + i] = -1; });
    Team::sync();
    for_each<Team>(count, [=](int64_t i) {
        const int32_t p = static_cast<int32_t>(begin + i), root = root_of(p), vertex = order[p];
        const bool fine = vertex >= 0 && vertex < vertices;
        if (!fine || atomicExch(scratch.position + root + vertex, p) != -1) atomicExch(valid + p / vertices, 0);
    });
    Team::sync();

    // Parents; a tree that is none becomes a star, which is harmless.
    for_each<Team>(count, [=](int64_t i) {
        const int32_t p = static_cast<int32_t>(begin + i), root = root_of(p), vertex = order[p];
        const bool known = vertex >= 0 && vertex < vertices;
        const int32_t above = known ? parent[root + vertex] : -1;
        int32_t found = above >= 0 && above < vertices ? scratch.position[root + above] : -1;
        const bool fine = p == root ? found == root : found >= root && found < p;
        if (!fine) atomicExch(valid + p / vertices, 0);
        scratch.parent[p] = fine ? found : root;
        scratch.first_child[p] = scratch.end_child[p] = 0;
    });
    Team::sync();
    for_each<Team>(count, [=](int64_t i) {
        const int32_t p = static_cast<int32_t>(begin + i), root = root_of(p);
        if (p > root + 1 && scratch.parent[p - 1] > scratch.parent[p]) atomicExch(valid + p / vertices, 0);
    });
    Team::sync();

    // The tour that enters and leaves every subtree: 2 p enters p, 2 p + 1 leaves it.
    auto parent_of = [=](int32_t p) { return valid[p / vertices] ? scratch.parent[p] : root_of(p); };
    for_each<Team>(count, [=](int64_t i) {
        const int32_t p = static_cast<int32_t>(begin + i), root = root_of(p);
        if (p == root) return;
        const int32_t above = parent_of(p);
        if (p == root + 1 || parent_of(p - 1) != above) scratch.first_child[above] = p;
        if (p + 1 == root + vertices || parent_of(p + 1) != above) scratch.end_child[above] = p + 1;
    });
    Team::sync();
    for_each<Team>(count, [=](int64_t i) {
        const int32_t p = static_cast<int32_t>(begin + i), root = root_of(p), above = parent_of(p);
        const bool leaf = scratch.end_child[p] == 0, last = p == root || p + 1 == scratch.end_child[above];
        scratch.links[2 * p] = {leaf ? 2 * p + 1 : 2 * scratch.first_child[p], 1};
        scratch.choice[p] = 0;
        scratch.links[2 * p + 1] = {last ? 2 * above + 1 : 2 * p + 2, p == root ? 0 : 1};
    });
    Team::sync();
    Link *links = scratch.links + 2 * begin, *spare = scratch.spare + 2 * begin;
    const Link* tour = rank_lists<Team>(links, spare, 2 * begin, 2 * count, 2 * int64_t{vertices});

    // The way from entering to leaving a subtree grows with its size.
    for_each<Team>(count, [=](int64_t i) {
        const int32_t p = static_cast<int32_t>(begin + i), above = parent_of(p);
        const int32_t way = tour[2 * i].distance - tour[2 * i + 1].distance;
        if (p != above && valid[p / vertices]) atomicMax(scratch.choice + above, choice_of(way, p));
    });
    Team::sync();
    auto preferred = [=](int32_t p) { return preferred_child(scratch.choice[p]); };

    // Every vertex finds the top of its path and its distance from it; the lowest one tells the length.
    for_each<Team>(count, [=](int64_t i) {
        const int32_t p = static_cast<int32_t>(begin + i), above = parent_of(p);
        const bool top = p == above || preferred(above) != p;
        links[i] = {top ? p : above, top ? 0 : 1};
    });
    Team::sync();
    const Link* path = rank_lists<Team>(links, spare, begin, count, vertices);
    for_each<Team>(count, [=](int64_t i) {
        const int32_t p = static_cast<int32_t>(begin + i);
        if (preferred(p) < 0) scratch.length[path[i].next] = path[i].distance + 1;
    });
    Team::sync();

    // Tops count the rounds above them and take places for their path.
    auto is_top = [=](int64_t i) { return path[i].next == begin + i && valid[(begin + i) / vertices]; };
    for_each<Team>(count, [=](int64_t i) {
        if (!is_top(i)) return;
        const int32_t p = static_cast<int32_t>(begin + i), root = root_of(p), length = scratch.length[p];
        int32_t round = 0;
        for (int32_t top = p; top != root; ++round) top = path[parent_of(top) - begin].next;
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
        const int32_t p = static_cast<int32_t>(begin + i), root = root_of(p), length = scratch.length[p];
        const int32_t chunks = chunks_of(length), round = scratch.round[p];
        int32_t carry = 0;
        if (chunks > 1) {
            const int64_t first = lists.first_item * PathSchedule::carries_of_one(vertices);
            carry = static_cast<int32_t>(first) + atomicAdd(counters.carries, chunks);
            schedule.long_paths[begin + atomicAdd(counters.next_long_path + round, 1)] = {carry, chunks};
        }
        const int32_t above = p == root ? -1 : root + order[scratch.parent[p]];
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
            root_of(p) + order[p], scratch.first_child[p], scratch.end_child[p], preferred(p)};
    });
}

}  // namespace

PathSchedule schedule_paths(const Device& device, Workspace& workspace, const int32_t* order, const int32_t* parent,
                            int64_t batch, int64_t vertices) {
    const int64_t count = batch * vertices;
    auto take = [&](int64_t size) { return workspace.take<int32_t>(size); };
    PathSchedule schedule{!one_block_each(device, batch, vertices),
                          static_cast<int32_t>(batch),
                          static_cast<int32_t>(vertices),
                          workspace.take<PathVertex>(count),
                          workspace.take<PathChunk>(count),
                          workspace.take<LongPath>(count),
                          take(batch * 2 * (PathSchedule::ROUNDS + 1)),
                          order,
                          take(batch)};
    Scratch scratch{take(count),
                    take(count),
                    take(count),
                    take(count),
                    workspace.take<Choice>(count),
                    workspace.take<Link>(2 * count),
                    workspace.take<Link>(2 * count),
                    take(count),
                    take(count),
                    take(count),
                    take(batch * Scratch::COUNTERS)};
    if (schedule.shared_by_all)
        device.launch_cooperative(path_schedule_kernel<GridTeam>, count, TEAM_THREADS, 0, schedule, parent, scratch);
    else
        device.launch(path_schedule_kernel<BlockTeam>, dim3(static_cast<unsigned>(batch)), TEAM_THREADS, 0, schedule,
                      parent, scratch);
    return schedule;
}

}  // namespace grootv
