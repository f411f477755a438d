//! The supervisor of one test cluster.

fn main() {}
