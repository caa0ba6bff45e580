// An arena: many small objects with one lifetime, allocated by moving a pointer and freed together.

#include <algorithm>
#include <cassert>
#include <cstddef>
#include <cstdint>
#include <iostream>
#include <memory>
#include <new>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

class Arena {
public:
    explicit Arena(std::size_t block_size = 64 * 1024) : block_size_(block_size) {}

    Arena(const Arena &) = delete;
    Arena &operator=(const Arena &) = delete;
    Arena(Arena &&other) noexcept
        : block_size_(other.block_size_),
          blocks_(std::move(other.blocks_)),
          next_(std::exchange(other.next_, nullptr)),
          end_(std::exchange(other.end_, nullptr)),
          cleanups_(std::exchange(other.cleanups_, nullptr)) {}

    ~Arena() { reset(); }

    // Raw memory that lives as long as the arena.
    void *allocate(std::size_t size, std::size_t alignment) {
        assert(alignment != 0 && (alignment & (alignment - 1)) == 0);
        auto address = reinterpret_cast<std::uintptr_t>(next_);
        std::uintptr_t aligned = (address + alignment - 1) & ~(alignment - 1);
        if (next_ == nullptr || aligned + size > reinterpret_cast<std::uintptr_t>(end_)) {
            grow(size + alignment);
            address = reinterpret_cast<std::uintptr_t>(next_);
            aligned = (address + alignment - 1) & ~(alignment - 1);
        }
        next_ = reinterpret_cast<std::byte *>(aligned + size);
        used_ += size;
        return reinterpret_cast<void *>(aligned);
    }

    // An object. Its destructor runs when the arena is reset, last made first; types that need none
    // cost nothing beside their own size.
    template <typename T, typename... Args>
    T *make(Args &&...args) {
        T *object = new (allocate(sizeof(T), alignof(T))) T(std::forward<Args>(args)...);
        if constexpr (!std::is_trivially_destructible_v<T>) {
            void *place = allocate(sizeof(Cleanup), alignof(Cleanup));
            cleanups_ = new (place) Cleanup{
                [](void *what) { static_cast<T *>(what)->~T(); }, object, cleanups_};
        }
        return object;
    }

    // A copy of a string, with the arena's lifetime.
    std::string_view copy(std::string_view text) {
        char *place = static_cast<char *>(allocate(text.size(), 1));
        std::copy(text.begin(), text.end(), place);
        return {place, text.size()};
    }

    // Destroys everything and keeps the first block, so that the next use need not ask for memory.
    void reset() {
        for (Cleanup *each = cleanups_; each != nullptr; each = each->before) each->destroy(each->object);
        cleanups_ = nullptr;
        used_ = 0;
        if (blocks_.empty()) return;
        blocks_.resize(1);
        next_ = blocks_.front().bytes.get();
        end_ = next_ + blocks_.front().size;
    }

    [[nodiscard]] std::size_t used() const { return used_; }
    [[nodiscard]] std::size_t reserved() const {
        std::size_t total = 0;
        for (const Block &block : blocks_) total += block.size;
        return total;
    }

private:
    struct Block {
        std::unique_ptr<std::byte[]> bytes;
        std::size_t size;
    };
    struct Cleanup {
        void (*destroy)(void *);
        void *object;
        Cleanup *before;
    };

    void grow(std::size_t at_least) {
        const std::size_t size = std::max(at_least, block_size_);
        blocks_.push_back({std::make_unique<std::byte[]>(size), size});
        next_ = blocks_.back().bytes.get();
        end_ = next_ + size;
    }

    std::size_t block_size_;
    std::vector<Block> blocks_;
    std::byte *next_ = nullptr;
    std::byte *end_ = nullptr;
    Cleanup *cleanups_ = nullptr;
    std::size_t used_ = 0;
};

namespace {

int alive = 0;

struct Counted {
    explicit Counted(int id) : id(id) { ++alive; }
    ~Counted() { --alive; }
    int id;
};

}  // namespace

int main() {
    Arena arena(256);
    for (int i = 0; i < 100; ++i) assert(arena.make<Counted>(i)->id == i);
    assert(alive == 100);
    assert(arena.copy("a short text") == "a short text");
    void *wide = arena.allocate(1000, 64);  // larger than a block, and strictly aligned
    assert(reinterpret_cast<std::uintptr_t>(wide) % 64 == 0);
    arena.reset();
    assert(alive == 0 && arena.used() == 0);
    std::cout << "kept " << arena.reserved() << " bytes\n";
}
