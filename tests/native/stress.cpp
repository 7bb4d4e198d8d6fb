// The thread pool, files and the pipeline under load, for sanitizers: no Python, so each report is about this project.
//
//     stress [ROUNDS]
//
// Every part checks its results. What a part hands to workers is freed as soon as the promises of pool.h and file.h say
// that nobody is at it, so that a late worker is a report. tests/sanitizers/run.py builds and runs it.
#include <fcntl.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>

#include "../../csrc/cpu/item.h"
#include "../../csrc/cpu/pool.h"
#include "../../csrc/cpu/weighted_sum.h"
#include "../../csrc/io/background.h"
#include "../../csrc/io/system.h"
#include "../../csrc/ops/digest.h"

using namespace warpmerge;
using Items = std::vector<std::shared_ptr<Item>>;

namespace {

void demand(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "broken promise: %s\n", what);
  std::abort();
}

// An item whose tiles write to memory that the caller frees when the launch has ended. Parts of it may fail.
class Counting final : public Item {
 public:
  enum class Fails { nothing, prepare, tile, finish };
  Counting(int64_t* memory, int64_t tiles, bool prepares, Fails fails)
      : memory_(memory), tiles_(tiles), prepares_(prepares), fails_(fails) {}
  int64_t tiles() const override { return tiles_; }
  bool prepares() const override { return prepares_; }
  void prepare(Worker& worker) override {
    fail_at(Fails::prepare);
    std::memset(worker.scratch(256), worker.index, 256);
    prepared_ = 1;
  }
  void tile(int64_t index, Worker& worker) override {
    if (index == tiles_ / 2) fail_at(Fails::tile);
    char* scratch = static_cast<char*>(worker.input_buffer(64 + size_t(index)));
    scratch[index] = char(index);
    memory_[index] = index + prepared_;
  }
  void finish(Worker&) override {
    fail_at(Fails::finish);
    total_ = std::accumulate(memory_, memory_ + tiles_, int64_t(0));
  }
  int64_t total() const { return total_; }

 private:
  void fail_at(Fails place) const {
    if (fails_ == place) throw std::runtime_error("as asked");
  }
  int64_t* const memory_;
  const int64_t tiles_;
  const bool prepares_;
  const Fails fails_;
  int64_t prepared_ = 0, total_ = -1;  // plain, as results of items are: the pool orders who writes and who reads
};

struct Work {
  explicit Work(std::mt19937& random) {
    const int count = 1 + int(random() % 6);
    for (int i = 0; i < count; ++i) {
      const int64_t tiles = 1 + int64_t(random() % 40);
      memory.emplace_back(new int64_t[size_t(tiles)]);
      const auto fails = random() % 8 ? Counting::Fails::nothing : Counting::Fails(random() % 4);
      will_fail = will_fail || fails != Counting::Fails::nothing;
      items.push_back(std::make_shared<Counting>(memory.back().get(), tiles, random() % 2 == 0, fails));
    }
  }
  Items launchable() const { return Items(items.begin(), items.end()); }
  std::vector<std::unique_ptr<int64_t[]>> memory;
  std::vector<std::shared_ptr<Counting>> items;
  bool will_fail = false;
};

void wait(Launch& launch) {
  while (!launch.wait_for(1)) {
  }
}

// Launches in several hands: some are cancelled, some fail, some are waited for in another order than they were
// started.
void launches(Pool& pool, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<std::pair<std::unique_ptr<Work>, std::shared_ptr<Launch>>> under_way;
  for (int i = 0; i < 20; ++i) {
    auto work = std::make_unique<Work>(random);
    auto launch = std::make_shared<Launch>(work->launchable());
    pool.start(launch);
    if (random() % 4 == 0) launch->cancel();
    under_way.emplace_back(std::move(work), std::move(launch));
    if (random() % 2) continue;
    const size_t number = random() % under_way.size();
    auto [done, waited] = std::move(under_way[number]);
    under_way.erase(under_way.begin() + std::ptrdiff_t(number));
    wait(*waited);
    bool failed = false;
    try {
      waited->check();
    } catch (const std::runtime_error&) {
      failed = true;
    }
    demand(!failed || done->will_fail, "only items that fail make a launch fail");
  }
  for (auto& [work, launch] : under_way) launch->cancel();
  for (auto& [work, launch] : under_way) launch->wait();
}

// Every tile of launches that nobody cancels is done once.
void complete(Pool& pool, unsigned seed) {
  std::mt19937 random(seed);
  for (int i = 0; i < 20; ++i) {
    Work work(random);
    auto launch = std::make_shared<Launch>(work.launchable());
    pool.start(launch);
    launch->wait();
    if (work.will_fail) continue;
    launch->check();
    for (const auto& item : work.items) {
      const int64_t tiles = item->tiles(), prepared = item->prepares();
      demand(item->total() == tiles * (tiles - 1) / 2 + tiles * prepared, "every tile is done, after its preparation");
    }
  }
}

void in_threads(int count, const std::function<void(int)>& action) {
  std::vector<std::thread> threads;
  for (int i = 0; i < count; ++i) threads.emplace_back(action, i);
  for (auto& thread : threads) thread.join();
}

void pools(const Kernels& kernels, unsigned seed) {
  for (int threads : {1, 3, 8}) {
    Pool pool(threads, kernels);
    in_threads(3, [&](int i) { launches(pool, seed + unsigned(i)); });
    in_threads(2, [&](int i) { complete(pool, seed + unsigned(i)); });
  }
  // A pool that goes while launches are under way.
  std::mt19937 random(seed);
  std::vector<std::unique_ptr<Work>> works;
  Pool pool(4, kernels);
  for (int i = 0; i < 10; ++i) {
    works.push_back(std::make_unique<Work>(random));
    pool.start(std::make_shared<Launch>(works.back()->launchable()));
  }
}

std::string folder;

std::string path_of(const std::string& name) { return folder + "/" + name; }

std::shared_ptr<File> written(const std::string& name, const void* data, size_t bytes) {
  const int fd = ::open(path_of(name).c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  demand(fd >= 0, "a file can be made");
  auto file = std::make_shared<File>(fd);
  file->write(data, bytes, 0);
  return file;
}

// The same file, opened when it is read.
std::shared_ptr<File> reopened(const std::string& name) {
  struct stat status;
  demand(::stat(path_of(name).c_str(), &status) == 0, "a file is there");
  constexpr int64_t kSecond = 1000000000;
  const File::Identity identity{int64_t(status.st_dev), int64_t(status.st_ino), int64_t(status.st_size),
                                status.st_mtim.tv_sec * kSecond + status.st_mtim.tv_nsec,
                                status.st_ctim.tv_sec * kSecond + status.st_ctim.tv_nsec};
  return std::make_shared<File>(path_of(name), identity);
}

// Calls are done in part, as a kernel may.
int64_t in_part(const char*, int, int64_t offset, int64_t bytes, const void*) {
  return bytes > 1 && offset % 3 == 0 ? -(bytes / 2) : 0;
}

// Readers of more files than may be open, while others put them away, read ahead and close.
void files() {
  constexpr int kFiles = 6;
  std::vector<std::shared_ptr<File>> all;
  for (int i = 0; i < kFiles; ++i) {
    const std::vector<char> content(1000, char('a' + i));
    written("in" + std::to_string(i), content.data(), content.size());
    all.push_back(reopened("in" + std::to_string(i)));
  }
  File::limit_open(2);
  auto background = std::make_unique<Background>();
  std::atomic<bool> closing{false};
  in_threads(6, [&](int hand) {
    std::mt19937 random(static_cast<unsigned>(hand));
    for (int i = 0; i < 200; ++i) {
      const int number = int(random() % kFiles);
      const auto file = all[size_t(number)];
      if (hand == 0) file->put_away();
      if (hand == 1) background->read_ahead(file, int64_t(random() % 900), 100);
      if (hand == 2) system::watch(i % 2 ? in_part : nullptr);
      if (hand == 3 && i == 150) {
        closing = true;
        all[0]->close();
      }
      char data[100];
      try {
        file->read(data, sizeof data, int64_t(random() % 900));
        for (char c : data) demand(c == char('a' + number), "a file has its content");
      } catch (const InputError&) {
        demand(number == 0 && closing, "only a closed file cannot be read");
      }
    }
  });
  system::watch(nullptr);
  background.reset();  // drops what has not started
  File::limit_open(512);
}

// Copies and sums from files and memory into files and memory, in tiles of a few elements.
void pipeline(const Kernels& kernels, int threads, std::mt19937& random) {
  constexpr int kModels = 3;
  const int64_t count = 1 + int64_t(random() % 5000), bytes = count * 4;
  const int64_t tile = 8 * (1 + int64_t(random() % 40));
  std::vector<std::vector<float>> values(kModels, std::vector<float>(size_t(count)));
  auto tensors = std::make_shared<Tensors>();
  tensors->count = count;
  for (int k = 0; k < kModels; ++k) {
    for (auto& value : values[size_t(k)]) value = float(random() % 100);
    View view;
    if (k) {
      written("model" + std::to_string(k), values[size_t(k)].data(), size_t(bytes));
      view.file = reopened("model" + std::to_string(k));
    } else {
      view.memory = reinterpret_cast<const char*>(values[0].data());
    }
    tensors->inputs.push_back(view);
  }
  auto background = std::make_shared<Background>();
  const auto target = [&](const char* name) {
    Output output;
    output.file = written(name, "", 0);
    output.background = background;
    return output;
  };
  std::vector<float> in_memory(static_cast<size_t>(count));
  Output memory;
  memory.memory = reinterpret_cast<char*>(in_memory.data());
  const std::vector<double> coefficients{1, 2, 3};
  auto to_file = std::make_shared<WeightedSumItem>(kernels, tensors, tile, coefficients, false,
                                                   std::vector<Output>{target("sum")});
  auto to_memory =
      std::make_shared<WeightedSumItem>(kernels, tensors, tile, coefficients, false, std::vector<Output>{memory});
  auto copy = std::make_shared<CopyItem>(kernels, tensors->inputs[1], bytes, tile * 4, target("copy"), 0, true);
  background->read_ahead(tensors->inputs[1].file, 0, bytes);
  {
    Pool pool(threads, kernels);
    auto launch = std::make_shared<Launch>(Items{to_file, copy, to_memory});
    pool.start(launch);
    launch->wait();
    launch->check();
  }
  std::vector<float> read(static_cast<size_t>(count)), copied(static_cast<size_t>(count));
  reopened("sum")->read(read.data(), size_t(bytes), 0);
  reopened("copy")->read(copied.data(), size_t(bytes), 0);
  for (size_t i = 0; i < size_t(count); ++i)
    demand(read[i] == values[0][i] + 2 * values[1][i] + 3 * values[2][i], "sums are right");
  demand(read == in_memory && copied == values[1], "files and memory hold the same");
  const uint64_t digest = kernels.digest(copied.data(), size_t(bytes), 0) + digest_length(uint64_t(bytes));
  demand(copy->digest() == digest, "digests of pieces add up");
}

}  // namespace

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 20;
  char name[] = "/tmp/warpmerge-stress-XXXXXX";
  demand(::mkdtemp(name) != nullptr, "a folder can be made");
  folder = name;
  std::mt19937 random(1);
  for (const char* isa : {"baseline", "avx2", "avx512"}) {
    const Kernels* kernels = find_kernels(isa);
    if (!kernels) continue;
    for (int i = 0; i < rounds; ++i) {
      pools(*kernels, unsigned(i));
      files();
      for (int threads : {1, 2, 8}) pipeline(*kernels, threads, random);
    }
    std::printf("%s: %d rounds\n", isa, rounds);
  }
  for (const char* file : {"sum", "copy", "model1", "model2", "in0", "in1", "in2", "in3", "in4", "in5"})
    ::unlink(path_of(file).c_str());
  ::rmdir(name);
}
