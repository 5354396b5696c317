//! The binary: hands the command line to `cli` and ends with its exit code.

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    doorward::cli::main()
}
