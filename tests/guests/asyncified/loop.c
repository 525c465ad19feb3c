// A loop of blocking calls in C, without a C library. Each is made at another depth of calls, so that there is a stack
// to keep, and every answer goes into a sum and into memory.

#define IMPORT(module, name) __attribute__((import_module(module), import_name(name)))
#define EXPORT(name) __attribute__((export_name(name)))

IMPORT("env", "host_call_api")
int host_call_api(const char *name, int name_length, const char *request, int request_length, char *response, int capacity);
IMPORT("env", "checkpoint") void checkpoint(void);
IMPORT("wasi_snapshot_preview1", "poll_oneoff")
int poll_oneoff(const void *subscriptions, void *events, int count, int *stored);

static char request[16], response[16];
static unsigned seen[4096]; // the answers, in order

static int number(const char *text, int length) {
  int value = 0;
  for (int at = 0; at < length; at++) value = value * 10 + (text[at] - '0');
  return value;
}

static int call(int i) {
  int length = 0;
  char digits[16];
  do {
    digits[length++] = '0' + i % 10;
    i /= 10;
  } while (i);
  for (int at = 0; at < length; at++) request[at] = digits[length - 1 - at];
  int answered = host_call_api("note", 4, request, length, response, sizeof response);
  return answered < 0 ? answered : number(response, answered);
}

// volatile: something of each frame lies in the memory's own stack as well
static __attribute__((noinline)) int deep(int depth, int i) {
  volatile int mark = depth * 1000 + i;
  int below = depth == 0 ? call(i) : deep(depth - 1, i);
  return mark == depth * 1000 + i ? below + depth : -1000000;
}

EXPORT("run") int run(int calls) {
  unsigned sum = 0;
  for (int i = 0; i < calls; i++) {
    int depth = i % 7;
    int answer = deep(depth, i) - depth * (depth + 1) / 2;
    seen[i % 4096] += answer + 1;
    sum = sum * 31 + answer;
  }
  return sum;
}

EXPORT("marked") int marked(int calls) {
  int sum = 0;
  for (int i = 0; i < calls; i++) {
    sum += call(i);
    checkpoint();
  }
  return sum;
}

EXPORT("nap") int nap(int naps, int milliseconds) {
  struct {
    unsigned long long userdata;
    unsigned char tag;
    _Alignas(8) unsigned int clock;
    unsigned long long timeout, precision;
    unsigned short flags;
  } wanted = {7, 0, 1, milliseconds * 1000000ull, 0, 0};
  char event[32];
  int stored = 0, sum = 0;
  for (int i = 0; i < naps; i++) {
    sum += call(i);
    if (poll_oneoff(&wanted, event, 1, &stored) != 0 || stored != 1 || event[0] != 7) return -1;
  }
  return sum;
}

// Waits so many calls deep.
EXPORT("nested") int nested(int depth) { return deep(depth, 7); }
