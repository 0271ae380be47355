// Package config reads a node's configuration file, /etc/halfproxy/halfproxy.yaml.
//
// The file is parsed strictly and checked whole: an unknown key, a wrong type, a
// name given twice or a combination that cannot work is an error, and every
// error is reported at once, each with its line, its path in the file and a
// remedy. Nothing in the file is ignored.
//
// There are two types. The unexported file is the shape on disk, where every
// value remembers where it stands; its fields' comments and tags are the one
// description of all options, of which the JSON Schemas in deploy/ and
// docs/configuration.md are made. Config is what came through the checks, with all defaults filled in;
// whoever holds one need not check it again.
//
// The package looks at nothing but the file, the files it names and the host
// name: whether an interface exists or a port is free is for those who use
// them. It changes nothing. It is called by cmd/halfproxy alone; the other
// packages are handed what concerns them.
package config

//go:generate go run ./generate
