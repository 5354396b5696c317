//! Commands: what people type, what they are told, how it ends.
//!
//! Every failure is told as error / cause / hint / request; exit codes are 0 done, 1 failed, 2 usage,
//! 3 denied, 4 unavailable. No secret is ever taken from argv or printed to a terminal unasked.

mod access;
mod admin;
mod args;
mod backup;
mod bench;
mod broker;
mod ca;
mod doctor;
mod entries;
mod exposure;
mod facts;
mod fault;
mod federation;
mod import;
mod join;
mod listing;
mod logs;
mod options;
mod output;
mod policies;
mod policy_options;
mod policy_tools;
mod posture;
mod secrets;
mod serve;
mod workload;

use std::process::ExitCode;

use clap::Parser as _;

use args::{Args, BenchWhat, Command};
use fault::Fault;
use output::Output;
use secrets::Change;

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) if !error.use_stderr() => error.exit(), // help and version were asked for
        Err(error) => {
            let json = std::env::args_os().take_while(|arg| arg != "--").any(|arg| arg == "--json");
            return Output::new(json).fault(&Fault::of_grammar(&error));
        }
    };
    let output = Output::new(args.json);
    match run(args, &output) {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => output.fault(&fault),
    }
}

fn protect(command: &Command, access: &access::Access) -> Result<(), Fault> {
    // A process that asks the agent must stay visible to it: the kernel hides the executable of a
    // non-dumpable one from everybody but root.
    let asks_the_agent = matches!(command, Command::Run(_) | Command::Get(_) | Command::Whoami)
        && access.agent().is_some();
    crate::app::harden(!asks_the_agent).map_err(|error| {
        Fault::failed("the process could not be protected").cause(error.to_string())
    })
}

fn run(args: Args, output: &Output) -> Result<(), Fault> {
    let access = access::Access::new(args.identity, args.socket);
    protect(&args.command, &access)?; // nothing secret is touched before this
    if let Command::Policy { action } = &args.command
        && let Some(done) = policy_tools::offline(action, output)
    {
        return done;
    }
    match args.command {
        Command::Completions { shell } => {
            output.text(&args::completions(shell));
            Ok(())
        }
        Command::Config { action } => serve::config(action, output),
        Command::Policy { action: policy_options::PolicyAction::Check { dir, trust_domain } } => {
            policies::check(&dir, trust_domain.as_deref(), output)
        }
        Command::Log { action: args::LogAction::Verify { dir, key } } => {
            logs::verify(&dir, key.as_deref(), output)
        }
        Command::Demo { keep } => serve::demo(keep, output),
        Command::Init(wishes) => serve::init(wishes, output),
        Command::Broker(options) => broker::broker(options, output),
        Command::Unseal(options) => broker::unseal(options, output),
        Command::Dev { dir } => serve::dev(dir, output),
        Command::Agent { dir, action } => serve::agent(dir, action, output),
        Command::Login { token, replace } => serve::login(&token, replace, &access, output),
        Command::Recover { action } => serve::recover(action, output),
        Command::Restore(options) => serve::restore(options, output),
        Command::Posture { action } if !posture::asks(&action) => posture::posture(action, output),
        Command::Bench { what: Some(BenchWhat::Posture), seconds, .. } => {
            bench::posture(seconds, output)
        }
        Command::Bench { what: Some(BenchWhat::Push), agents, changes, .. } => {
            bench::push(agents, changes, output)
        }
        Command::Bench {
            what: Some(BenchWhat::Identity),
            agents,
            entries,
            changes,
            seconds,
            rounds,
            ..
        } => bench::identity((agents, entries, changes), seconds, rounds, output),
        Command::Bench { seconds, rounds, shape, echo, ready_file, .. } => match (echo, ready_file)
        {
            (Some(answer), Some(ready)) => bench::echo(answer, &ready, &access),
            _ => bench::requests(seconds, rounds, shape.as_deref(), output),
        },
        Command::Run(options) => workload::run(options, &access, output),
        Command::Device { action: args::DeviceAction::Facts { pid } } => facts::facts(pid, output),
        Command::Doctor { dir } => doctor::doctor(dir.as_deref(), &access, output),
        rest => block_on(async {
            let outcome = asking(rest, &access, output).await;
            access.finish().await;
            outcome
        }),
    }
}

/// The commands that ask a broker something.
async fn asking(command: Command, access: &access::Access, output: &Output) -> Result<(), Fault> {
    match command {
        Command::Put(options) => secrets::put(options, access, output).await,
        Command::Get(options) => secrets::get(options, access, output).await,
        Command::List { prefix } => secrets::list(&prefix, access, output).await,
        Command::Versions { name } => secrets::versions(&name, access, output).await,
        Command::Activate { name, version } => {
            secrets::change(&name, Change::Activate(version), access, output).await
        }
        Command::Delete { name, version } => {
            secrets::change(&name, Change::Delete(version), access, output).await
        }
        Command::Undelete { name, version } => {
            secrets::change(&name, Change::Undelete(version), access, output).await
        }
        Command::Label { name, labels } => {
            secrets::change(&name, Change::Label(labels), access, output).await
        }
        Command::Import { file, prefix, dry_run } => {
            import::import(&file, &prefix, dry_run, access, output).await
        }
        Command::Whoami => admin::whoami(access, output).await,
        Command::CanI { action, object } => admin::can_i(&action, &object, access, output).await,
        Command::Status => admin::status(access, output).await,
        Command::Token { action } => admin::token(action, access, output).await,
        Command::Operator { action } => admin::operator(action, access, output).await,
        Command::Device { action } => admin::device(action, access, output).await,
        Command::Entry { action } => entries::entry(action, access, output).await,
        Command::Identity { action } => entries::identity(action, access, output).await,
        Command::Ca { action } => ca::ca(action, access, output).await,
        Command::Federation { action } => federation::federation(action, access, output).await,
        Command::Backup(options) => backup::backup(options, access, output).await,
        Command::Posture { action } => posture::explain_device(action, access, output).await,
        Command::Policy { action } => policies::policy(action, access, output).await,
        Command::Log { action } => logs::log(action, access, output).await,
        Command::Explain { request } => logs::explain(&request, access, output).await,
        _ => Err(Fault::failed("this command is not known here")),
    }
}

/// A small runtime for one command.
pub(crate) fn block_on<T>(task: impl Future<Output = Result<T, Fault>>) -> Result<T, Fault> {
    crate::app::runtime()
        .map_err(|error| Fault::failed("no runtime").cause(error.to_string()))?
        .block_on(task)
}
