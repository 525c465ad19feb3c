// A workflow in C by guest_sdk_c: a loop of calls at different depths, then one of two and a signal with a deadline.
#include "../../../guest_sdk_c/wasman.h"

static unsigned seen[2048];

static int number(const char *text, int length) {
  int value = 0;
  for (int at = 0; at < length; at++) value = value * 10 + (text[at] - '0');
  return value;
}

static int digits(char *text, unsigned value) {
  char turned[16];
  int length = 0;
  do {
    turned[length++] = '0' + value % 10;
    value /= 10;
  } while (value);
  for (int at = 0; at < length; at++) text[at] = turned[length - 1 - at];
  return length;
}

static __attribute__((noinline)) int deep(int depth, int i) {
  volatile int mark = depth * 1000 + i;
  if (depth > 0) return mark == depth * 1000 + i ? deep(depth - 1, i) : -1;
  char request[16], answer[16];
  int length = wasman_call("note", request, digits(request, i), answer, sizeof answer);
  return length < 0 ? -2 : number(answer, length);
}

WASMAN_WORKFLOW {
  char text[64];
  int calls = number(text, wasman_input(text, sizeof text));
  unsigned sum = 0;
  for (int i = 0; i < calls; i++) {
    int answer = deep(i % 7, i);
    seen[i % 2048] += answer + 1;
    sum = sum * 31 + answer;
  }
  if (wasman_sleep(1000000) != 0) wasman_fail("{\"type\":\"Sleepless\",\"message\":\"\"}", 33);
  wasman_op both[2] = {wasman_start("slow", "1", 1), wasman_receive("mail")};
  int first = wasman_wait_any(both, 2, WASMAN_FOREVER);
  if (first != 1) wasman_fail("{\"type\":\"Order\",\"message\":\"\"}", 29);
  int said = number(text, wasman_take(both[1], text, sizeof text));
  wasman_cancel(both[0]);
  wasman_wait(both[0], WASMAN_FOREVER);
  int failed = wasman_take(both[0], text, sizeof text) < 0;
  wasman_complete(text, digits(text, sum + said + failed));
}
