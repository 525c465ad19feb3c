// A loop of calls in AssemblyScript, ABI v1: as waits.zig, but that each answer lies on the heap.

@external("wasman", "flush")
declare function flush(commands: usize, length: i32): i32;
@external("wasman", "wait")
declare function wait(operations: usize, count: i32, deadline: i64): i32;
@external("wasman", "result_len")
declare function resultLen(operation: u32): i32;
@external("wasman", "result_read")
declare function resultRead(operation: u32, offset: i32, into: usize, length: i32): i32;

const CALL: u16 = 1, COMPLETE: u16 = 4;
const NONE: u32 = 0xffffffff; // no operation; the input, where one is read

const answers = new Array<string>();

// Hand over a command; what it says is put behind its frame by the caller, from byte 16 on.
function say(kind: u16, operation: u32, frame: ArrayBuffer): void {
  const at = changetype<usize>(frame);
  store<u32>(at, frame.byteLength);
  store<u32>(at + 4, operation);
  store<u16>(at + 8, kind);
  flush(at, frame.byteLength);
}

function put(frame: ArrayBuffer, at: i32, text: ArrayBuffer): void {
  memory.copy(changetype<usize>(frame) + at, changetype<usize>(text), text.byteLength);
}

function read(operation: u32): string {
  const bytes = new ArrayBuffer(resultLen(operation));
  resultRead(operation, 0, changetype<usize>(bytes), bytes.byteLength);
  return String.UTF8.decode(bytes);
}

function call(i: u32): u32 {
  const name = String.UTF8.encode("note");
  const request = String.UTF8.encode(i.toString());
  const frame = new ArrayBuffer(24 + name.byteLength + request.byteLength);
  store<u32>(changetype<usize>(frame) + 16, name.byteLength);
  put(frame, 24, name);
  put(frame, 24 + name.byteLength, request);
  say(CALL, i, frame);
  const operation = new ArrayBuffer(4);
  store<u32>(changetype<usize>(operation), i);
  assert(wait(changetype<usize>(operation), 1, -1) == 0);
  const answer = read(i);
  answers.push(answer);
  return U32.parseInt(answer);
}

function deep(depth: u32, i: u32): u32 {
  return depth == 0 ? call(i) : deep(depth - 1, i) + depth;
}

export function wasman_abi(): i32 {
  return 1;
}

export function run(): void {
  const calls = U32.parseInt(read(NONE));
  let sum: u32 = 0;
  for (let i: u32 = 0; i < calls; i++) {
    const depth = i % 7;
    sum = sum * 31 + deep(depth, i) - (depth * (depth + 1)) / 2;
  }
  const result = String.UTF8.encode(sum.toString());
  const end = new ArrayBuffer(16 + result.byteLength);
  put(end, 16, result);
  say(COMPLETE, NONE, end);
}
