// How the pass over a tree of tokens goes from the leaves to the root, and in which rows it keeps states.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

#include "cpu/parallel.h"
#include "cpu/workspace.h"
#include "token_scan.h"

namespace grootv {

// A step of the pass to the root: the state of a token, then its share of the parent's.
struct Visit {
    int32_t token, parent;  // the root's is -1
    int32_t row, parent_row;
    bool heard;         // the row holds what the children sent
    bool parent_heard;  // the parent's row holds what other children sent
};

struct Walk {
    const Visit* visits;
    int64_t length, rows;
};

// The walks of a batch of trees.
class Walks {
public:
    Walks(const TokenScanArguments& scan, const Tensor& order, const Tensor& parent)
        : length_(scan.length), visits_(scan.batch * scan.length), rows_(scan.batch) {
        Tensor orders = as_contiguous(order), parents = as_contiguous(parent);
        std::atomic<int64_t> wrong{-1};
        parallel_for_each(scan.function, scan.batch, [&](int64_t item) {
            if (!plan(orders.const_data_ptr<int32_t>() + item * length_,
                      parents.const_data_ptr<int32_t>() + item * length_, item))
                wrong = item;
        });
        TokenScanArguments::check_tree(scan.function, wrong < 0, wrong);
    }

    Walk operator[](int64_t item) const { return {visits_.data() + item * length_, length_, rows_[item]}; }

private:
    bool plan(const int32_t* order, const int32_t* parent, int64_t item) {
        const auto length = static_cast<int32_t>(length_);
        Workspace workspace;
        auto *position = workspace.take<int32_t>(length), *row = workspace.take<int32_t>(length);
        std::fill_n(position, length, -1);
        for (int32_t p = 0; p < length; ++p) {
            if (order[p] < 0 || order[p] >= length || position[order[p]] >= 0) return false;
            position[order[p]] = p;
        }
        if (order[0] != length - 1) return false;
        for (int32_t p = 1; p < length; ++p)
            if (int32_t above = parent[order[p]]; above < 0 || above >= length || position[above] >= p) return false;

        std::vector<int32_t> free;
        int32_t rows = 0;
        std::fill_n(row, length, -1);
        Visit* visit = visits_.data() + item * length_;
        for (int32_t p = length - 1; p >= 0; --p, ++visit) {
            const int32_t token = order[p];
            visit->heard = row[token] >= 0;
            if (!visit->heard) {
                if (free.empty()) free.push_back(rows++);
                row[token] = free.back();
                free.pop_back();
            }
            visit->token = token, visit->row = visit->parent_row = row[token], visit->parent = -1;
            if (p == 0) break;
            const int32_t above = visit->parent = parent[token];
            visit->parent_heard = row[above] >= 0;
            if (visit->parent_heard)
                free.push_back(row[token]);
            else
                row[above] = row[token];
            visit->parent_row = row[above];
        }
        rows_[item] = rows;
        return true;
    }

    int64_t length_;
    std::vector<Visit> visits_;
    std::vector<int64_t> rows_;
};

}  // namespace grootv
