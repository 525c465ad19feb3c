// A loop of calls in Zig, ABI v1: as many as the input says, each at another depth of calls. Spoken from docs/abi.md.

extern "wasman" fn flush(commands: [*]const u8, length: usize) i32;
extern "wasman" fn wait(operations: [*]const u32, count: usize, deadline: i64) i32;
extern "wasman" fn result_len(operation: u32) i32;
extern "wasman" fn result_read(operation: u32, offset: usize, into: [*]u8, length: usize) i32;

const none = 0xffffffff; // no operation; the input, where one is read

// A command: its frame, and behind that the name and the options of a call with their lengths.
const Head = extern struct { length: u32, operation: u32, kind: u16, flags: u16 = 0, zero: u32 = 0 };
const Call = extern struct { head: Head, name_length: u32 = 4, options_length: u32 = 0, name: [4]u8 = "note".*, request: [12]u8 = undefined };
const End = extern struct { head: Head, result: [12]u8 = undefined };

var seen: [1024]u32 = @splat(0);

fn write(into: *[12]u8, value: u32) u32 {
    var digits: u32 = 1;
    var rest = value;
    while (rest > 9) : (rest /= 10) digits += 1;
    rest = value;
    var at = digits;
    while (at > 0) : (rest /= 10) {
        at -= 1;
        into[at] = '0' + @as(u8, @intCast(rest % 10));
    }
    return digits;
}

fn read(operation: u32) u32 {
    var text: [12]u8 = undefined;
    const length: usize = @intCast(result_len(operation));
    _ = result_read(operation, 0, &text, text.len);
    var value: u32 = 0;
    for (text[0..length]) |digit| value = value * 10 + (digit - '0');
    return value;
}

noinline fn deep(depth: u32, i: u32) u32 {
    if (depth > 0) return deep(depth - 1, i) +% depth;
    var call = Call{ .head = .{ .length = undefined, .operation = i, .kind = 1 } };
    call.head.length = @offsetOf(Call, "request") + write(&call.request, i);
    _ = flush(@ptrCast(&call), call.head.length);
    if (wait(@ptrCast(&i), 1, -1) != 0) unreachable;
    return read(i);
}

export fn wasman_abi() i32 {
    return 1;
}

export fn run() void {
    const calls = read(none);
    var sum: u32 = 0;
    var i: u32 = 0;
    while (i < calls) : (i += 1) {
        const depth = i % 7;
        const answer = deep(depth, i) - depth * (depth + 1) / 2;
        seen[i % seen.len] += answer + 1;
        sum = sum *% 31 +% answer;
    }
    var end = End{ .head = .{ .length = undefined, .operation = none, .kind = 4 } };
    end.head.length = @offsetOf(End, "result") + write(&end.result, sum);
    _ = flush(@ptrCast(&end), end.head.length);
}
