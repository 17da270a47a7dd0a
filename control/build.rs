//! The console is part of the binary: a changed file of it is a changed crate.

fn main() {
    println!("cargo:rerun-if-changed=console");
    println!("cargo:rerun-if-changed=build.rs");
}
