//! What the services of this socket look like, as protobuf describes itself (descriptor.proto): for
//! reflection, so that tools need no files.
//!
//! Only methods that are served stand here: whoever reads it learns which profiles there are. Tables
//! of constants; nothing of a client is in them.

use prost::Message;

/// One `.proto` file (descriptor.proto's `FileDescriptorProto`; likewise those below).
#[derive(Clone, PartialEq, Message)]
pub(super) struct FileShape {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(string, tag = "2")]
    pub(super) package: String,
    #[prost(string, repeated, tag = "3")]
    pub(super) dependency: Vec<String>,
    #[prost(message, repeated, tag = "4")]
    pub(super) message_type: Vec<MessageShape>,
    #[prost(message, repeated, tag = "5")]
    pub(super) enum_type: Vec<EnumShape>,
    #[prost(message, repeated, tag = "6")]
    pub(super) service: Vec<ServiceShape>,
    #[prost(string, tag = "12")]
    pub(super) syntax: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct MessageShape {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(message, repeated, tag = "2")]
    pub(super) field: Vec<FieldShape>,
    #[prost(message, repeated, tag = "3")]
    pub(super) nested_type: Vec<MessageShape>,
    #[prost(message, optional, tag = "7")]
    pub(super) options: Option<MessageOptions>,
    #[prost(message, repeated, tag = "8")]
    pub(super) oneof_decl: Vec<Named>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct MessageOptions {
    #[prost(bool, optional, tag = "7")]
    pub(super) map_entry: Option<bool>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Named {
    #[prost(string, tag = "1")]
    pub(super) name: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct FieldShape {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(int32, tag = "3")]
    pub(super) number: i32,
    #[prost(int32, tag = "4")]
    pub(super) label: i32,
    #[prost(int32, tag = "5")]
    pub(super) kind: i32,
    #[prost(string, optional, tag = "6")]
    pub(super) type_name: Option<String>,
    #[prost(int32, optional, tag = "9")]
    pub(super) oneof_index: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct EnumShape {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(message, repeated, tag = "2")]
    pub(super) value: Vec<EnumValue>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct EnumValue {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(int32, optional, tag = "2")]
    pub(super) number: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ServiceShape {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(message, repeated, tag = "2")]
    pub(super) method: Vec<MethodShape>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct MethodShape {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(string, tag = "2")]
    pub(super) input_type: String,
    #[prost(string, tag = "3")]
    pub(super) output_type: String,
    #[prost(bool, optional, tag = "5")]
    pub(super) client_streaming: Option<bool>,
    #[prost(bool, optional, tag = "6")]
    pub(super) server_streaming: Option<bool>,
}

/// A field's type; names of messages without the dot in front.
#[derive(Clone, Copy)]
enum Is {
    Double,
    Int32,
    Bool,
    Text,
    Bytes,
    Of(&'static str),
    Enum(&'static str),
    /// A map from text.
    Map(&'static Is),
}

/// How often it stands there.
#[derive(Clone, Copy)]
enum Times {
    Once,
    Many,
    /// One of several of which one stands there.
    Either,
}

use Is::{Bool, Bytes, Double, Enum, Int32, Map, Of, Text};
use Times::{Either, Many, Once};

type Field = (&'static str, i32, Times, Is);
/// A message by its name; its choice, if it has one; its fields.
type Shape = (&'static str, Option<&'static str>, &'static [Field]);
/// A method: its name, what goes in and out, and whether in and out are streams.
type Method = (&'static str, &'static str, &'static str, bool, bool);

const WORKLOAD: &[Shape] = &[
    ("X509SVIDRequest", None, &[]),
    (
        "X509SVIDResponse",
        None,
        &[
            ("svids", 1, Many, Of("X509SVID")),
            ("crl", 2, Many, Bytes),
            ("federated_bundles", 3, Many, Map(&Bytes)),
        ],
    ),
    (
        "X509SVID",
        None,
        &[
            ("spiffe_id", 1, Once, Text),
            ("x509_svid", 2, Once, Bytes),
            ("x509_svid_key", 3, Once, Bytes),
            ("bundle", 4, Once, Bytes),
            ("hint", 5, Once, Text),
        ],
    ),
    ("X509BundlesRequest", None, &[]),
    ("X509BundlesResponse", None, &[("crl", 1, Many, Bytes), ("bundles", 2, Many, Map(&Bytes))]),
    ("JWTSVIDRequest", None, &[("audience", 1, Many, Text), ("spiffe_id", 2, Once, Text)]),
    ("JWTSVIDResponse", None, &[("svids", 1, Many, Of("JWTSVID"))]),
    (
        "JWTSVID",
        None,
        &[("spiffe_id", 1, Once, Text), ("svid", 2, Once, Text), ("hint", 3, Once, Text)],
    ),
    ("JWTBundlesRequest", None, &[]),
    ("JWTBundlesResponse", None, &[("bundles", 1, Many, Map(&Bytes))]),
    ("ValidateJWTSVIDRequest", None, &[("audience", 1, Once, Text), ("svid", 2, Once, Text)]),
    (
        "ValidateJWTSVIDResponse",
        None,
        &[("spiffe_id", 1, Once, Text), ("claims", 2, Once, Of("google.protobuf.Struct"))],
    ),
];

const WORKLOAD_METHODS: &[Method] = &[
    ("FetchX509SVID", "X509SVIDRequest", "X509SVIDResponse", false, true),
    ("FetchX509Bundles", "X509BundlesRequest", "X509BundlesResponse", false, true),
    ("FetchJWTSVID", "JWTSVIDRequest", "JWTSVIDResponse", false, false),
    ("FetchJWTBundles", "JWTBundlesRequest", "JWTBundlesResponse", false, true),
    ("ValidateJWTSVID", "ValidateJWTSVIDRequest", "ValidateJWTSVIDResponse", false, false),
];

const STRUCT: &[Shape] = &[
    ("Struct", None, &[("fields", 1, Many, Map(&Of("google.protobuf.Value")))]),
    (
        "Value",
        Some("kind"),
        &[
            ("null_value", 1, Either, Enum("google.protobuf.NullValue")),
            ("number_value", 2, Either, Double),
            ("string_value", 3, Either, Text),
            ("bool_value", 4, Either, Bool),
            ("struct_value", 5, Either, Of("google.protobuf.Struct")),
            ("list_value", 6, Either, Of("google.protobuf.ListValue")),
        ],
    ),
    ("ListValue", None, &[("values", 1, Many, Of("google.protobuf.Value"))]),
];

/// Names without a dot are of the file's own package.
const REFLECTION: &[Shape] = &[
    (
        "ServerReflectionRequest",
        Some("message_request"),
        &[
            ("host", 1, Once, Text),
            ("file_by_filename", 3, Either, Text),
            ("file_containing_symbol", 4, Either, Text),
            ("file_containing_extension", 5, Either, Of("ExtensionRequest")),
            ("all_extension_numbers_of_type", 6, Either, Text),
            ("list_services", 7, Either, Text),
        ],
    ),
    (
        "ExtensionRequest",
        None,
        &[("containing_type", 1, Once, Text), ("extension_number", 2, Once, Int32)],
    ),
    (
        "ServerReflectionResponse",
        Some("message_response"),
        &[
            ("valid_host", 1, Once, Text),
            ("original_request", 2, Once, Of("ServerReflectionRequest")),
            ("file_descriptor_response", 4, Either, Of("FileDescriptorResponse")),
            ("all_extension_numbers_response", 5, Either, Of("ExtensionNumberResponse")),
            ("list_services_response", 6, Either, Of("ListServiceResponse")),
            ("error_response", 7, Either, Of("ErrorResponse")),
        ],
    ),
    ("FileDescriptorResponse", None, &[("file_descriptor_proto", 1, Many, Bytes)]),
    (
        "ExtensionNumberResponse",
        None,
        &[("base_type_name", 1, Once, Text), ("extension_number", 2, Many, Int32)],
    ),
    ("ListServiceResponse", None, &[("service", 1, Many, Of("ServiceResponse"))]),
    ("ServiceResponse", None, &[("name", 1, Once, Text)]),
    ("ErrorResponse", None, &[("error_code", 1, Once, Int32), ("error_message", 2, Once, Text)]),
];

const REFLECTION_METHODS: &[Method] =
    &[("ServerReflectionInfo", "ServerReflectionRequest", "ServerReflectionResponse", true, true)];

/// All files of this socket's services.
pub(super) fn files() -> Vec<FileShape> {
    let null = EnumValue { name: "NULL_VALUE".into(), number: Some(0) };
    let null = EnumShape { name: "NullValue".into(), value: vec![null] };
    let mut structure = file("google/protobuf/struct.proto", "google.protobuf", STRUCT, None);
    structure.enum_type.push(null);
    let service = Some(("SpiffeWorkloadAPI", WORKLOAD_METHODS));
    let mut workload = file("workload.proto", "", WORKLOAD, service);
    workload.dependency.push(structure.name.clone());
    let reflection = |version: &str| {
        let name = format!("grpc/reflection/{version}/reflection.proto");
        let package = format!("grpc.reflection.{version}");
        file(&name, &package, REFLECTION, Some(("ServerReflection", REFLECTION_METHODS)))
    };
    vec![workload, structure, reflection("v1"), reflection("v1alpha")]
}

fn file(
    name: &str,
    package: &str,
    shapes: &[Shape],
    service: Option<(&str, &[Method])>,
) -> FileShape {
    let service = service.map(|(name, methods)| ServiceShape {
        name: name.to_owned(),
        method: methods.iter().map(|method| shape_of_method(package, method)).collect(),
    });
    FileShape {
        name: name.to_owned(),
        package: package.to_owned(),
        dependency: Vec::new(),
        message_type: shapes.iter().map(|shape| shape_of(package, shape)).collect(),
        enum_type: Vec::new(),
        service: service.into_iter().collect(),
        syntax: "proto3".to_owned(),
    }
}

fn shape_of_method(package: &str, method: &Method) -> MethodShape {
    let (name, input, output, from_client, from_server) = *method;
    MethodShape {
        name: name.to_owned(),
        input_type: whole_name(package, input),
        output_type: whole_name(package, output),
        client_streaming: from_client.then_some(true),
        server_streaming: from_server.then_some(true),
    }
}

fn shape_of(package: &str, (name, choice, fields): &Shape) -> MessageShape {
    let mut nested_type = Vec::new();
    let mut field = Vec::new();
    for (its, number, times, is) in *fields {
        let Map(value) = is else {
            field.push(shape_of_field(package, its, *number, *times, *is));
            continue;
        };
        // A map is a list of messages of their own kind, each a key with its value.
        let entry = format!("{}Entry", camel(its));
        nested_type.push(MessageShape {
            name: entry.clone(),
            field: vec![
                shape_of_field(package, "key", 1, Once, Text),
                shape_of_field(package, "value", 2, Once, **value),
            ],
            nested_type: Vec::new(),
            options: Some(MessageOptions { map_entry: Some(true) }),
            oneof_decl: Vec::new(),
        });
        let mut list = shape_of_field(package, its, *number, Many, Of(""));
        list.type_name = Some(format!("{}.{entry}", whole_name(package, name)));
        field.push(list);
    }
    let oneof_decl = choice.iter().map(|choice| Named { name: (*choice).to_owned() }).collect();
    MessageShape { name: (*name).to_owned(), field, nested_type, options: None, oneof_decl }
}

fn shape_of_field(package: &str, name: &str, number: i32, times: Times, is: Is) -> FieldShape {
    let (kind, of) = match is {
        Double => (1, None),
        Int32 => (5, None),
        Bool => (8, None),
        Text => (9, None),
        Of(name) => (11, Some(name)),
        Map(_) => (11, None),
        Bytes => (12, None),
        Enum(name) => (14, Some(name)),
    };
    FieldShape {
        name: name.to_owned(),
        number,
        label: if matches!(times, Many) { 3 } else { 1 },
        kind,
        type_name: of.map(|of| whole_name(package, of)),
        oneof_index: matches!(times, Either).then_some(0),
    }
}

fn whole_name(package: &str, name: &str) -> String {
    match name.contains('.') || package.is_empty() {
        true => format!(".{name}"),
        false => format!(".{package}.{name}"),
    }
}

/// `federated_bundles` as `FederatedBundles`.
fn camel(name: &str) -> String {
    let words = name.split('_');
    let big = |word: &str| {
        let mut letters = word.chars();
        let first = letters.next().map(|first| first.to_ascii_uppercase());
        first.into_iter().chain(letters).collect::<String>()
    };
    words.map(big).collect()
}

impl FileShape {
    /// A name of this file's package in full.
    fn full(&self, name: &str) -> String {
        whole_name(&self.package, name).trim_start_matches('.').to_owned()
    }

    /// The full names of its services.
    pub(super) fn services(&self) -> impl Iterator<Item = String> {
        self.service.iter().map(|service| self.full(&service.name))
    }

    /// Whether it says what this full name is: a service, a method of one, a message or an enum.
    pub(super) fn defines(&self, symbol: &str) -> bool {
        let services = self.service.iter().any(|service| {
            let whole = self.full(&service.name);
            let of_it = |method: &MethodShape| symbol == format!("{whole}.{}", method.name);
            symbol == whole || service.method.iter().any(of_it)
        });
        let messages = self.message_type.iter().any(|message| {
            let whole = self.full(&message.name);
            let of_it = |inner: &MessageShape| symbol == format!("{whole}.{}", inner.name);
            symbol == whole || message.nested_type.iter().any(of_it)
        });
        services || messages || self.enum_type.iter().any(|it| symbol == self.full(&it.name))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_name_that_is_used_is_defined_in_the_file_or_one_that_it_names() {
        let files = files();
        for file in &files {
            let known: Vec<&FileShape> = files
                .iter()
                .filter(|other| other.name == file.name || file.dependency.contains(&other.name))
                .collect();
            let defined = |name: &str| {
                let name = name.strip_prefix('.').unwrap_or_else(|| panic!("{name} has no dot"));
                known.iter().any(|file| file.defines(name))
            };
            let nested = file.message_type.iter().flat_map(|message| &message.nested_type);
            for message in file.message_type.iter().chain(nested) {
                let mut numbers = HashSet::new();
                for field in &message.field {
                    assert!(numbers.insert(field.number), "{} {}", message.name, field.name);
                    let is_named = matches!(field.kind, 11 | 14);
                    assert_eq!(field.type_name.is_some(), is_named, "{}", field.name);
                    assert!(field.type_name.iter().all(|name| defined(name)), "{field:?}");
                    let choices = i32::try_from(message.oneof_decl.len()).unwrap();
                    assert!(field.oneof_index.is_none_or(|at| at < choices), "{field:?}");
                }
            }
            for method in file.service.iter().flat_map(|service| &service.method) {
                assert!(defined(&method.input_type) && defined(&method.output_type), "{method:?}");
            }
        }
        assert!(!files[0].defines("SpiffeWorkloadAPI.FetchWITSVID"), "it is not served");
        assert!(files[0].defines("X509SVIDResponse.FederatedBundlesEntry"));
    }

    #[test]
    fn what_it_says_of_messages_is_what_is_sent() {
        use super::super::messages::X509Svid;
        let svid = X509Svid {
            spiffe_id: "a".into(),
            x509_svid: vec![1],
            x509_svid_key: vec![2],
            bundle: vec![3],
            hint: "h".into(),
        };
        let mut sent = svid.encode_to_vec();
        let files = files();
        let shape = files[0].message_type.iter().find(|it| it.name == "X509SVID").unwrap();
        // Each field is one octet of tag, one of length, one of content.
        let mut numbers = Vec::new();
        while !sent.is_empty() {
            numbers.push(i32::from(sent[0] >> 3));
            sent.drain(..3);
        }
        assert_eq!(numbers, shape.field.iter().map(|it| it.number).collect::<Vec<_>>());
    }
}
