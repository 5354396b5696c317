//! gRPC server reflection (`grpc.reflection.v1` and `v1alpha`, which differ in their name only), so
//! that tools find out what this socket serves (SPIFFE Workload Endpoint §7).
//!
//! A service of its own beside the Workload API. It tells constants of this program, and nothing of
//! any process; whoever asks needs no identity, but the endpoint's header as for everything else here
//! (§3), and pays for each question as for a call.

use std::pin::Pin;

use futures_util::stream::unfold;
use http_body::Body as _;
use prost::{Message, Oneof};
use tokio::time::timeout;
use tonic::body::Body;
use tonic::codegen::Bytes;
use tonic::{Code, Status};

use super::descriptors::{FileShape, files};
use super::messages::{PREFIX, frame, only_message};
use super::reply::Messages;
use super::watch::Watch;
use crate::model::limits::{REFLECTION_QUESTIONS, REFLECTION_REQUEST, REFLECTION_SILENCE};

/// The paths of its one method.
pub(super) const PATHS: [&str; 2] = [
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];

/// One question.
#[derive(Clone, PartialEq, Message)]
struct Question {
    #[prost(string, tag = "1")]
    host: String,
    #[prost(oneof = "Wanted", tags = "3, 4, 5, 6, 7")]
    wanted: Option<Wanted>,
}

#[derive(Clone, PartialEq, Oneof)]
enum Wanted {
    #[prost(string, tag = "3")]
    FileByFilename(String),
    #[prost(string, tag = "4")]
    FileContainingSymbol(String),
    #[prost(message, tag = "5")]
    FileContainingExtension(Extension),
    #[prost(string, tag = "6")]
    AllExtensionNumbersOfType(String),
    #[prost(string, tag = "7")]
    ListServices(String),
}

#[derive(Clone, PartialEq, Message)]
struct Extension {
    #[prost(string, tag = "1")]
    containing_type: String,
    #[prost(int32, tag = "2")]
    extension_number: i32,
}

/// Its answer.
#[derive(Clone, PartialEq, Message)]
struct Told {
    #[prost(string, tag = "1")]
    valid_host: String,
    #[prost(message, optional, tag = "2")]
    original_request: Option<Question>,
    #[prost(oneof = "Found", tags = "4, 5, 6, 7")]
    found: Option<Found>,
}

#[derive(Clone, PartialEq, Oneof)]
enum Found {
    #[prost(message, tag = "4")]
    Files(Files),
    #[prost(message, tag = "5")]
    Extensions(ExtensionNumbers),
    #[prost(message, tag = "6")]
    Services(Services),
    #[prost(message, tag = "7")]
    Error(Fault),
}

#[derive(Clone, PartialEq, Message)]
struct Files {
    #[prost(bytes = "vec", repeated, tag = "1")]
    file_descriptor_proto: Vec<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
struct ExtensionNumbers {
    #[prost(string, tag = "1")]
    base_type_name: String,
    #[prost(int32, repeated, tag = "2")]
    extension_number: Vec<i32>,
}

#[derive(Clone, PartialEq, Message)]
struct Services {
    #[prost(message, repeated, tag = "1")]
    service: Vec<ServiceName>,
}

#[derive(Clone, PartialEq, Message)]
struct ServiceName {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, Message)]
struct Fault {
    #[prost(int32, tag = "1")]
    error_code: i32,
    #[prost(string, tag = "2")]
    error_message: String,
}

/// The answers of one call, each as its question arrives.
pub(super) fn answers(body: Body, watch: Watch) -> Messages {
    let questions = Questions { body, arrived: Vec::new(), left: REFLECTION_QUESTIONS, watch };
    Box::pin(unfold(Some(questions), |questions| async {
        let mut questions = questions?;
        match questions.next().await {
            Ok(Some(message)) => Some((Ok(message), Some(questions))),
            Ok(None) => Some((Err(Status::ok("")), None)),
            Err(status) => Some((Err(status), None)),
        }
    }))
}

struct Questions {
    body: Body,
    /// Octets of the stream that were not used yet: less than one question and one frame.
    arrived: Vec<u8>,
    left: usize,
    watch: Watch,
}

impl Questions {
    /// The answer to the next question; `None` once the client has no more.
    async fn next(&mut self) -> Result<Option<Bytes>, Status> {
        let late = |_| Status::deadline_exceeded("no question came");
        let Some(question) = timeout(REFLECTION_SILENCE, self.question()).await.map_err(late)??
        else {
            return Ok(None);
        };
        self.left = self.left.checked_sub(1).ok_or_else(|| {
            Status::resource_exhausted("one call has so many questions only: call again")
        })?;
        self.watch.charge(1)?;
        let too_large = || Status::internal("the answer is too large");
        frame(&told(question)).ok_or_else(too_large).map(Some)
    }

    async fn question(&mut self) -> Result<Option<Question>, Status> {
        let odd = || Status::invalid_argument("the request is not one plain message");
        loop {
            if let Some(length) = whole_length(&self.arrived)? {
                let message: Vec<u8> = self.arrived.drain(..length).collect();
                return only_message(&message).ok_or_else(odd).map(Some);
            }
            let mut body = Pin::new(&mut self.body);
            let frame = std::future::poll_fn(|cx| body.as_mut().poll_frame(cx)).await;
            let Some(frame) = frame else {
                return if self.arrived.is_empty() { Ok(None) } else { Err(odd()) };
            };
            let frame = frame.map_err(|_| Status::cancelled("the request did not arrive"))?;
            if let Ok(data) = frame.into_data() {
                self.arrived.extend_from_slice(&data);
            }
        }
    }
}

/// The length of the first message with its prefix, once all of it is there.
fn whole_length(arrived: &[u8]) -> Result<Option<usize>, Status> {
    let Some(prefix) = arrived.first_chunk::<PREFIX>() else { return Ok(None) };
    let [_, length @ ..] = *prefix;
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if length > REFLECTION_REQUEST {
        return Err(Status::invalid_argument("the request is too large"));
    }
    let whole = length.saturating_add(PREFIX);
    Ok((arrived.len() >= whole).then_some(whole))
}

fn told(question: Question) -> Told {
    let files = files();
    let found = match &question.wanted {
        Some(Wanted::ListServices(_)) => {
            let names = files.iter().flat_map(FileShape::services);
            let service = names.map(|name| ServiceName { name }).collect();
            Found::Services(Services { service })
        }
        Some(Wanted::FileByFilename(name)) => of_file(&files, |file| file.name == *name),
        Some(Wanted::FileContainingSymbol(name)) => {
            let name = name.strip_prefix('.').unwrap_or(name);
            of_file(&files, |file| file.defines(name))
        }
        Some(Wanted::AllExtensionNumbersOfType(name)) => {
            match files.iter().any(|file| file.defines(name)) {
                true => Found::Extensions(ExtensionNumbers {
                    base_type_name: name.clone(),
                    extension_number: Vec::new(),
                }),
                false => fault(Code::NotFound, "there is no such type here"),
            }
        }
        Some(Wanted::FileContainingExtension(_)) => {
            fault(Code::NotFound, "there are no extensions here")
        }
        None => fault(Code::InvalidArgument, "nothing is asked for"),
    };
    Told { valid_host: question.host.clone(), original_request: Some(question), found: Some(found) }
}

/// The first file of which that is so, with those that it needs behind it.
fn of_file(files: &[FileShape], is_it: impl Fn(&FileShape) -> bool) -> Found {
    let Some(file) = files.iter().find(|file| is_it(file)) else {
        return fault(Code::NotFound, "there is no such file or symbol here");
    };
    let needed = files.iter().filter(|other| file.dependency.contains(&other.name));
    let file_descriptor_proto =
        std::iter::once(file).chain(needed).map(Message::encode_to_vec).collect();
    Found::Files(Files { file_descriptor_proto })
}

fn fault(code: Code, message: &str) -> Found {
    Found::Error(Fault { error_code: code.into(), error_message: message.to_owned() })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ask(wanted: Wanted) -> Found {
        let question = Question { host: "h".into(), wanted: Some(wanted) };
        let told = told(question.clone());
        assert_eq!((told.valid_host.as_str(), told.original_request), ("h", Some(question)));
        told.found.unwrap()
    }

    fn names(found: Found) -> Vec<String> {
        let Found::Files(files) = found else { panic!("{found:?}") };
        let files = files.file_descriptor_proto.iter();
        files.map(|bytes| FileShape::decode(bytes.as_slice()).unwrap().name).collect()
    }

    #[test]
    fn services_files_and_symbols_are_found_with_what_they_need() {
        let Found::Services(services) = ask(Wanted::ListServices(String::new())) else { panic!() };
        let services: Vec<_> = services.service.into_iter().map(|it| it.name).collect();
        let want = [
            "SpiffeWorkloadAPI",
            "grpc.reflection.v1.ServerReflection",
            "grpc.reflection.v1alpha.ServerReflection",
        ];
        assert_eq!(services, want);
        let workload = ["workload.proto", "google/protobuf/struct.proto"];
        for symbol in
            ["SpiffeWorkloadAPI", "SpiffeWorkloadAPI.FetchX509SVID", "X509SVID", ".JWTSVID"]
        {
            let found = ask(Wanted::FileContainingSymbol(symbol.into()));
            assert_eq!(names(found), workload, "{symbol}");
        }
        assert_eq!(names(ask(Wanted::FileByFilename(workload[1].into()))), workload[1..]);
        let alpha = ask(Wanted::FileContainingSymbol(want[2].into()));
        assert_eq!(names(alpha), ["grpc/reflection/v1alpha/reflection.proto"]);
        let none = ask(Wanted::AllExtensionNumbersOfType("X509SVID".into()));
        assert!(matches!(none, Found::Extensions(it) if it.extension_number.is_empty()));
    }

    #[test]
    fn what_is_not_there_is_said_so() {
        let extension = Extension { containing_type: "X509SVID".into(), extension_number: 1 };
        for wanted in [
            Wanted::FileByFilename("/etc/passwd".into()),
            Wanted::FileByFilename(String::new()),
            Wanted::FileContainingSymbol("SpiffeWorkloadAPI.FetchWITSVID".into()),
            Wanted::FileContainingSymbol(String::new()),
            Wanted::AllExtensionNumbersOfType("X".into()),
            Wanted::FileContainingExtension(extension),
        ] {
            let Found::Error(fault) = ask(wanted.clone()) else { panic!("{wanted:?}") };
            assert_eq!(fault.error_code, 5, "{wanted:?}");
        }
        let Some(Found::Error(fault)) = told(Question::default()).found else { panic!() };
        assert_eq!(fault.error_code, 3);
    }

    #[test]
    fn a_message_is_waited_for_up_to_its_bound() {
        let prefix =
            |length: usize| [&[0][..], &u32::try_from(length).unwrap().to_be_bytes()].concat();
        assert_eq!(whole_length(&[]).unwrap(), None);
        assert_eq!(whole_length(&prefix(3)[..4]).unwrap(), None);
        assert_eq!(whole_length(&[prefix(3), vec![0; 2]].concat()).unwrap(), None);
        assert_eq!(whole_length(&[prefix(3), vec![0; 9]].concat()).unwrap(), Some(8));
        assert_eq!(whole_length(&prefix(REFLECTION_REQUEST)).unwrap(), None);
        assert!(whole_length(&prefix(REFLECTION_REQUEST + 1)).is_err());
        assert!(whole_length(&[0, 0xff, 0xff, 0xff, 0xff]).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(body in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = whole_length(&body);
            if let Some(question) = only_message::<Question>(&body) {
                let _ = frame(&told(question));
            }
        }
    }
}
