package config

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/halfproxy/halfproxy/internal/words"
)

const (
	nodeSchema    = "../deploy/halfproxy.schema.json"
	backendSchema = "../deploy/backend.schema.json"
	includeSchema = "../deploy/services.schema.json"
)

// beyondSchema has the tests whose files are wrong in a way that a schema cannot
// say: it sees each value alone.
const beyondSchema = "testdata/beyond_schema.txt"

// bySchema holds what an editor says of a file against what the checker said.
func bySchema(t *testing.T, schema, file string, err error) {
	t.Helper()
	document, sound := document(file)
	if !sound {
		return // no YAML, or none that a library would take
	}
	refused := published(t, schema).Validate(document)
	beyond := slices.Contains(strings.Split(string(read(t, beyondSchema)), "\n"), t.Name())
	switch {
	case err == nil && refused != nil:
		t.Errorf("an editor would refuse what is right: %v", refused)
	case err != nil && refused == nil && !beyond:
		t.Errorf("the schema takes what is wrong: can it see that? Else the test's name goes into %s: %s", beyondSchema, t.Name())
	case beyond && refused != nil:
		t.Errorf("the schema can see what is wrong: the test is to go from %s", beyondSchema)
	}
}

func published(t *testing.T, schema string) *jsonschema.Schema {
	t.Helper()
	s, err := compiled[schema]()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

var compiled = map[string]func() (*jsonschema.Schema, error){
	nodeSchema: compiledOnce(nodeSchema), backendSchema: compiledOnce(backendSchema), includeSchema: compiledOnce(includeSchema),
}

func compiledOnce(schema string) func() (*jsonschema.Schema, error) {
	return sync.OnceValues(func() (*jsonschema.Schema, error) { return jsonschema.NewCompiler().Compile(schema) })
}

// document is a file as JSON has it.
func document(file string) (any, bool) {
	var document any
	if yaml.Unmarshal([]byte(file), &document) != nil {
		return nil, false
	}
	text, err := json.Marshal(document)
	if err != nil {
		return nil, false
	}
	document, err = jsonschema.UnmarshalJSON(strings.NewReader(string(text)))
	return document, err == nil
}

func TestTheSchemasTakeEveryExampleOfTheTree(t *testing.T) {
	readme := string(read(t, "../README.md"))
	_, rest, _ := strings.Cut(readme, "```yaml\n")
	example, _, _ := strings.Cut(rest, "```")
	for name, tt := range map[string]struct{ schema, file string }{
		"deploy/halfproxy.yaml":        {nodeSchema, string(read(t, "../deploy/halfproxy.yaml"))},
		"deploy/backend.yaml":          {backendSchema, string(read(t, "../deploy/backend.yaml"))},
		"testdata/contract.yaml":       {nodeSchema, string(read(t, served))},
		"testdata/contract-whole.yaml": {nodeSchema, string(read(t, "testdata/contract-whole.yaml"))},
		"testdata/backend.yaml":        {backendSchema, string(read(t, servedBackend))},
		"README.md":                    {nodeSchema, example},
	} {
		d, sound := document(tt.file)
		if !sound || d == nil {
			t.Errorf("%s: no YAML", name)
			continue
		}
		if err := published(t, tt.schema).Validate(d); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The tags of the shape say what the checker does: what it takes and what it
// refuses at the ends of ranges, which words there are, what holds without a word.
func TestTheShapeSaysWhatTheCheckerDoes(t *testing.T) {
	notes := everyNote(t)
	for path, tag := range tagsOf(reflect.TypeFor[file](), "") {
		n, known := notes[path]
		if !known {
			t.Errorf("%s: no file of everyNote gives it", path)
			continue
		}
		agree(t, path, tag, n)
	}
	report := &report{file: "backend.yaml"}
	shape := new(backendFile)
	decodeInto(report, []byte("interfaces: [eth0]\nvips: [203.0.113.10]\ndecap: [gue]\ngue: {}\nsources: [192.0.2.1]\nhttp: {}\n"), shape)
	checkBackend(report, shape)
	notes = gathered(nil, report)
	for path, tag := range tagsOf(reflect.TypeFor[backendFile](), "") {
		if path != "decap" { // its default is another than the test's
			agree(t, path, tag, notes[path])
		}
	}
}

func agree(t *testing.T, path string, tag reflect.StructTag, notes []note) {
	t.Helper()
	fallback, takes := "", func(value) error { return nil }
	for _, n := range notes {
		if n.takes != nil {
			takes = n.takes
		}
		if n.silent {
			fallback = n.text()
		}
	}
	kind := tag.Get("kind")
	taken := func(text string) error {
		v := value{text: text}
		if _, err := strconv.Atoi(text); err == nil {
			v.kind = number
		}
		return takes(v)
	}
	if want := tag.Get("default"); want != "" && fallback != want {
		t.Errorf("%s: the default is %q, and the tag says %q", path, fallback, want)
	}
	if listed := tag.Get("words"); listed != "" {
		known := strings.Split(listed, ",")
		for _, w := range known {
			if err := taken(w); err != nil {
				t.Errorf("%s: the tag has the word %s, which %v", path, w, err)
			}
		}
		if err := taken("nonsense"); err == nil || !strings.Contains(err.Error(), words.Or(known)) {
			t.Errorf("%s: of nonsense: got %v, want it to choose %s", path, err, listed)
		}
	}
	if limits := tag.Get("range"); limits != "" {
		least, most, _ := strings.Cut(limits, "..")
		for text, good := range map[string]bool{least: true, most: true, next(kind, least, -1): false, next(kind, most, 1): false} {
			if err := taken(text); (err == nil) != good {
				t.Errorf("%s: %s is in %s: got %v, want %v", path, text, limits, err, good)
			}
		}
	}
}

// next is the nearest value below or above.
func next(kind, text string, step int) string {
	if kind == "share" {
		n, _ := strconv.Atoi(strings.TrimSuffix(text, "%"))
		return fmt.Sprintf("%d%%", n+step)
	}
	if n, err := strconv.Atoi(text); err == nil {
		return strconv.Itoa(n + step)
	}
	d, _ := time.ParseDuration(text)
	unit := time.Nanosecond
	if kind == "seconds" {
		unit = time.Second
	}
	return (d + time.Duration(step)*unit).String()
}

// tagsOf gives the tags of all values below t, by their path.
func tagsOf(t reflect.Type, path string) map[string]reflect.StructTag {
	tags := map[string]reflect.StructTag{}
	for i := 1; i < t.NumField(); i++ {
		f := t.Field(i)
		at := strings.TrimPrefix(path+"."+f.Tag.Get("yaml"), ".")
		items, listed := f.Type.FieldByName("items")
		switch {
		case f.Type == reflect.TypeFor[pairs]():
		case f.Type == reflect.TypeFor[value](), listed && items.Type.Elem() == reflect.TypeFor[value]():
			tags[at] = f.Tag
		case listed:
			for p, tag := range tagsOf(items.Type.Elem(), at) {
				tags[p] = tag
			}
		default:
			for p, tag := range tagsOf(f.Type, at) {
				tags[p] = tag
			}
		}
	}
	return tags
}

var positions = regexp.MustCompile(`\[\d+\](?: "[^"]*")?(: )?`)

// gathered adds the notes of a report, by paths that are the same for all entries
// of a list.
func gathered(notes map[string][]note, r *report) map[string][]note {
	if notes == nil {
		notes = map[string][]note{}
	}
	for path, n := range r.notes {
		path = strings.TrimSuffix(positions.ReplaceAllString(path, "."), ".")
		notes[path] = append(notes[path], n)
	}
	return notes
}

// everyNote is what the checker notes of files that have every key.
func everyNote(t *testing.T) map[string][]note {
	t.Helper()
	files := []string{
		string(read(t, "../deploy/halfproxy.yaml")),
		"include: services.d/*.yaml\nnode: {interfaces: [eth0]}\nbgp: {asn: 1, router_id: 192.0.2.1, communities: [no-export], peers: [{address: 192.0.2.2, asn: 2, bfd: {}, local_address: 192.0.2.1}]}\nservices: []\n",
	}
	for _, options := range []string{
		"check: {type: http, headers: {A: b}}", "check: {type: grpc}", "check: {type: grpc, tls: true, host: www, ca_file: ca, cert_file: c, key_file: k, service: s}",
		"check: {type: dns, query: example.org, over: udp, answer: 192.0.2.1}", "check: {type: exec, command: [/bin/true]}",
		"check: {type: udp, payload: a, answer: b}", "check: {type: udp, payload_hex: a0, answer_hex: a0}",
		"forward: gue", "forward: ipip\n    outer_sources: [198.51.100.0/24]", "limit: {packets: 1}",
		"hash: source\n    quic: {server_id_length: 1}",
	} {
		files = append(files, edit(t, "    check: {type: tcp, via: direct}", "    "+options), edit(t, "    forward: l2 ", "    "+options+"\n    tracking: all "))
	}
	notes := map[string][]note{}
	for _, f := range files {
		report := &report{file: "halfproxy.yaml"}
		shape, ok := decode(report, []byte(f))
		if !ok {
			t.Fatal(report.errors())
		}
		c := checker{report: report, host: host{name: os.Hostname}, hosts: map[netip.Addr]string{}}
		c.include(shape)
		c.config(shape)
		notes = gathered(notes, report)
	}
	return notes
}
