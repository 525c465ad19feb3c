// A loop of blocking calls in Zig; as loop.c.

extern "env" fn host_call_api(name: [*]const u8, name_length: usize, request: [*]const u8, request_length: usize, response: [*]u8, capacity: usize) i32;

var response: [16]u8 = undefined;
var seen: [4096]u32 = @splat(0);

fn call(i: u32) i32 {
    var digits: [16]u8 = undefined;
    var at: usize = digits.len;
    var rest = i;
    while (true) {
        at -= 1;
        digits[at] = '0' + @as(u8, @intCast(rest % 10));
        rest /= 10;
        if (rest == 0) break;
    }
    const answered = host_call_api("note", 4, digits[at..].ptr, digits.len - at, &response, response.len);
    if (answered < 0) return answered;
    var value: i32 = 0;
    for (response[0..@intCast(answered)]) |digit| value = value * 10 + (digit - '0');
    return value;
}

noinline fn deep(depth: u32, i: u32) i32 {
    const below = if (depth == 0) call(i) else deep(depth - 1, i);
    return below + @as(i32, @intCast(depth));
}

export fn run(calls: u32) i32 {
    var sum: i32 = 0;
    var i: u32 = 0;
    while (i < calls) : (i += 1) {
        const depth: i32 = @intCast(i % 7);
        const answer = deep(i % 7, i) - @divTrunc(depth * (depth + 1), 2);
        seen[i % 4096] +%= @as(u32, @bitCast(answer +% 1));
        sum = sum *% 31 +% answer;
    }
    return sum;
}
