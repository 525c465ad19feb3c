/* wasman.h: durable workflows in C, ABI v1, the blocking form. One header, no C library; written from docs/abi.md.
 *
 *     #include "wasman.h"
 *
 *     WASMAN_WORKFLOW {
 *       wasman_op charged = wasman_start("charge", "{\"cents\":5}", 11);
 *       if (wasman_wait(charged, WASMAN_FOREVER) != WASMAN_DONE) return;   // the run is to be cancelled
 *       char receipt[200];
 *       int length = wasman_take(charged, receipt, sizeof receipt);
 *       if (length < 0) wasman_fail(receipt, -length);                     // what it failed with, JSON
 *       wasman_complete(receipt, length);
 *     }
 *
 * Operations are asked for at once and waited for later, one or any of several. Built for wasm32 and passed through
 * `wasman build --asyncify`, a run is kept in the middle of a wait; else it is replayed. Text is UTF-8, values are JSON
 * or bytes. Lengths and results are int; what is below 0 is an error of docs/abi.md.
 */
#ifndef WASMAN_H
#define WASMAN_H

#define WASMAN_IMPORT(name) __attribute__((import_module("wasman"), import_name(name)))
#define WASMAN_EXPORT(name) __attribute__((export_name(name)))

WASMAN_IMPORT("now") long long wasman_now(void); /* ns since 1970: the time of the last thing that happened */
WASMAN_IMPORT("random") int wasman_random(void *bytes, int length);
WASMAN_IMPORT("log") int wasman_log_(int level, const void *text, int length, const void *more, int more_length);
WASMAN_IMPORT("flush") int wasman_flush_(const void *commands, int length);
WASMAN_IMPORT("result_len") int wasman_result_len_(unsigned operation);
WASMAN_IMPORT("result_read") int wasman_result_read_(unsigned operation, int offset, void *bytes, int length);
WASMAN_IMPORT("stream_read") int wasman_stream_read_(const void *name, int name_length, void *bytes, int length);
WASMAN_IMPORT("stream_write") int wasman_stream_write_(const void *name, int name_length, const void *bytes, int length);
WASMAN_IMPORT("wait") int wasman_wait_(const unsigned *operations, int count, long long deadline);

typedef unsigned wasman_op;

enum { WASMAN_DEBUG = -4, WASMAN_INFO = 0, WASMAN_WARNING = 4, WASMAN_ERROR = 8 };
enum { WASMAN_DONE = 0, WASMAN_LATE = 1, WASMAN_CANCELLED = -5 };
#define WASMAN_FOREVER (-1LL)
#define WASMAN_COMMAND 4096 /* bytes of the largest command that is built here: a call's name and request */

static wasman_op wasman_next_;
static unsigned char wasman_command_[WASMAN_COMMAND + 64];

static inline int wasman_length_(const char *text) {
  int length = 0;
  while (text[length]) length++;
  return length;
}

static inline void wasman_put_(int at, unsigned value, int bytes) {
  for (int i = 0; i < bytes; i++) wasman_command_[at + i] = value >> 8 * i;
}

static inline int wasman_copy_(int at, const void *from, int length) {
  for (int i = 0; i < length; i++) wasman_command_[at + i] = ((const unsigned char *)from)[i];
  return at + length;
}

static inline int wasman_say_(int kind, unsigned operation, int end) {
  wasman_put_(0, end, 4);
  wasman_put_(4, operation, 4);
  wasman_put_(8, kind, 2);
  wasman_put_(10, 0, 2);
  wasman_put_(12, 0, 4);
  return wasman_flush_(wasman_command_, end);
}

/* Begin to call an activity; a request of no bytes is JSON to none. What does not fit into a command traps. */
static inline wasman_op wasman_start(const char *activity, const void *request, int length) {
  int named = wasman_length_(activity);
  if (named + length > WASMAN_COMMAND) __builtin_trap();
  wasman_put_(16, named, 4);
  wasman_put_(20, 0, 4);
  int end = wasman_copy_(wasman_copy_(24, activity, named), request, length);
  wasman_say_(1, wasman_next_, end);
  return wasman_next_++;
}

/* Begin to receive a signal: the oldest one of that name that nobody has. */
static inline wasman_op wasman_receive(const char *signal) {
  wasman_say_(2, wasman_next_, wasman_copy_(16, signal, wasman_length_(signal)));
  return wasman_next_++;
}

/* Withdraw a receive, or ask that a call be cut short: it is answered all the same. */
static inline void wasman_cancel(wasman_op operation) { wasman_say_(3, operation, 16); }

/* Wait until one of several is answered, or until a time, ns since 1970. Its place; `count` when it is late; below 0:
 * WASMAN_CANCELLED, told once. An operation that was answered and not taken is there at once. */
static inline int wasman_wait_any(const wasman_op *operations, int count, long long until) {
  return wasman_wait_(operations, count, until);
}

/* The same for one: WASMAN_DONE, WASMAN_LATE, WASMAN_CANCELLED. */
static inline int wasman_wait(wasman_op operation, long long until) { return wasman_wait_(&operation, 1, until); }

/* Take an answer: its length; below 0 that of a failure, JSON. What has more bytes than there is room for stays, to be
 * taken with more: then nothing is copied, and the length is more than `room`. */
static inline int wasman_take(wasman_op operation, void *bytes, int room) {
  int length = wasman_result_len_(operation), failed = 0;
  if (length < 0) __builtin_trap(); /* it was taken, or is not answered yet */
  if (length & 1 << 30) length &= ~(1 << 30), failed = 1;
  if (length <= room) wasman_result_read_(operation, 0, bytes, room);
  return failed ? -length : length;
}

/* Call an activity and wait: the length of its result; below 0 that of its failure. A cancel of the run cuts it short. */
static inline int wasman_call(const char *activity, const void *request, int length, void *bytes, int room) {
  wasman_op operation = wasman_start(activity, request, length);
  while (wasman_wait(operation, WASMAN_FOREVER) == WASMAN_CANCELLED) wasman_cancel(operation);
  return wasman_take(operation, bytes, room);
}

/* Wait for so many ns. */
static inline int wasman_sleep(long long nanoseconds) { return wasman_wait_(0, 0, wasman_now() + nanoseconds); }

/* What the run was started with, and its session: their length; copied where there is room. */
static inline int wasman_input(void *bytes, int room) {
  int length = wasman_result_len_(0xffffffffu);
  if (length <= room) wasman_result_read_(0xffffffffu, 0, bytes, room);
  return length;
}

static inline int wasman_session(void *bytes, int room) {
  int length = wasman_result_len_(0xfffffffeu);
  if (length <= room) wasman_result_read_(0xfffffffeu, 0, bytes, room);
  return length;
}

/* End the run, with a result (JSON) or a failure (JSON: {"type": ..., "message": ...}). They do not return. */
static inline void wasman_complete(const void *result, int length) {
  if (length > WASMAN_COMMAND) __builtin_trap();
  wasman_say_(4, 0xffffffffu, wasman_copy_(16, result, length));
  __builtin_trap();
}

static inline void wasman_fail(const void *failure, int length) {
  if (length > WASMAN_COMMAND) __builtin_trap();
  wasman_say_(5, 0xffffffffu, wasman_copy_(16, failure, length));
  __builtin_trap();
}

static inline void wasman_log(int level, const char *text) { wasman_log_(level, text, wasman_length_(text), 0, 0); }

/* Fill a buffer from a source of the session, and write one to a sink; 0 at the end, and a length of 0 closes. */
static inline int wasman_read(const char *source, void *bytes, int length) {
  return wasman_stream_read_(source, wasman_length_(source), bytes, length);
}

static inline int wasman_write(const char *sink, const void *bytes, int length) {
  return wasman_stream_write_(sink, wasman_length_(sink), bytes, length);
}

WASMAN_EXPORT("wasman_abi") int wasman_abi_(void) { return 1; }

/* The workflow's body; returning from it completes the run with null. */
#define WASMAN_WORKFLOW WASMAN_EXPORT("run") void wasman_run_(void)

#endif
