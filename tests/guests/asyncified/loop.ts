// A loop of blocking calls in AssemblyScript; as loop.c, but that each answer lies on the heap.

@external("env", "host_call_api")
declare function host_call_api(name: usize, nameLength: i32, request: usize, requestLength: i32, response: usize, capacity: i32): i32;

const answers = new Array<string>();

function call(i: i32): i32 {
  const name = String.UTF8.encode("note");
  const request = String.UTF8.encode(i.toString());
  const response = new ArrayBuffer(16);
  const answered = host_call_api(changetype<usize>(name), name.byteLength, changetype<usize>(request), request.byteLength, changetype<usize>(response), 16);
  if (answered < 0) return answered;
  const text = String.UTF8.decode(response.slice(0, answered));
  answers.push(text);
  return I32.parseInt(text);
}

function deep(depth: i32, i: i32): i32 {
  const below = depth == 0 ? call(i) : deep(depth - 1, i);
  return below + depth;
}

export function run(calls: i32): i32 {
  let sum = 0;
  for (let i = 0; i < calls; i++) {
    const depth = i % 7;
    sum = sum * 31 + deep(depth, i) - (depth * (depth + 1)) / 2;
  }
  return sum;
}
