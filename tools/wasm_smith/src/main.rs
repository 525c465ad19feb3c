//! Writes generated modules into a folder: `wasman-smith FOLDER FIRST COUNT`, one file for each number from FIRST on.
//!
//! A number is all that a module is made from. Most have the shape of a guest: they import what the host offers, export
//! their memory and an entry, and some of them an initialiser. Every fourth is wild: any proposal, any import.

use arbitrary::Unstructured;
use std::path::Path;
use wasm_smith::{Config, Module};

const IMPORTS: &str = include_str!("imports.wat");

/// SplitMix64, so that the bytes that a module is made from depend on its number alone.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        word ^ (word >> 31)
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length.div_ceil(8)).flat_map(|_| self.next().to_le_bytes()).collect()
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.next() % n == 0
    }
}

/// What a guest exports: the names and types are given, all behind them is random.
fn exports(random: &mut Random) -> String {
    let mut text = String::from("(module (memory (export \"memory\") 1 4)");
    text += [
        "(func (export \"run\"))",
        "(func (export \"run\") (result i32) unreachable)",
        "(func (export \"run\") (param i32 i64) (result i64) unreachable)",
        "(func (export \"_start\"))",
    ][(random.next() % 4) as usize];
    if random.one_in(4) {
        text += "(func (export \"_initialize\"))";
    }
    if random.one_in(8) {
        text += "(func (export \"wasman_reentrant\"))";
    }
    text + ")"
}

fn guest(random: &mut Random) -> Config {
    Config {
        available_imports: Some(wat::parse_str(IMPORTS).expect("imports.wat is a module")),
        exports: Some(wat::parse_str(exports(random)).expect("it is a module")),
        allow_start_export: random.one_in(8),
        bulk_memory_enabled: true,
        exceptions_enabled: false,
        gc_enabled: false,
        memory64_enabled: false,
        threads_enabled: false,
        wide_arithmetic_enabled: false,
        compact_imports_enabled: false,
        reference_types_enabled: random.one_in(4),
        tail_call_enabled: random.one_in(4),
        relaxed_simd_enabled: random.one_in(4),
        max_memories: 0, // beside the exported one
        max_funcs: 8,
        max_globals: 8,
        max_imports: 12,
        min_imports: 2,
        max_types: 60,
        max_instructions: 120,
        max_data_segments: 4,
        max_element_segments: 4,
        max_elements: 16,
        max_table_elements: 10_000,
        ..Config::default()
    }
}

fn wild() -> Config {
    Config {
        custom_page_sizes_enabled: true,
        generate_custom_sections: true,
        max_memories: 3,
        max_tables: 3,
        max_funcs: 10,
        max_imports: 10,
        max_types: 20,
        max_exports: 10,
        max_instructions: 60,
        max_data_segments: 5,
        max_element_segments: 5,
        ..Config::default()
    }
}

fn module(number: u64) -> Vec<u8> {
    let mut random = Random(number);
    let length = 200 + (random.next() % 3000) as usize;
    let bytes = random.bytes(length);
    let shaped = number % 4 != 3;
    let config = if shaped { guest(&mut random) } else { wild() };
    let mut module = Module::new(config, &mut Unstructured::new(&bytes)).expect("bytes that end are zeros from then on");
    if shaped && !random.one_in(8) {
        // Without this most of what loops does so for ever, and only the limit of time is tested.
        module.ensure_termination(5_000).expect("the module has no function that cannot be read");
    }
    module.to_bytes()
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, folder, first, count] = arguments.as_slice() else {
        eprintln!("usage: wasman-smith FOLDER FIRST COUNT");
        std::process::exit(2);
    };
    let (first, count): (u64, u64) = (first.parse().expect("a number"), count.parse().expect("a number"));
    for number in first..first + count {
        std::fs::write(Path::new(folder).join(format!("{number}.wasm")), module(number)).expect("the folder is there");
    }
}
