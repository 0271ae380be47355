package lb

import "strings"

// HashFields are what of a packet its flow's hash covers, and so what chooses the
// backend: packets that are equal in these go to the same one.
type HashFields uint8

// The fields there are, with the bits that the data plane knows them by.
const (
	HashSource HashFields = 1 << iota // address
	HashDestination
	HashSourcePort
	HashDestinationPort

	// HashFlow tells connections apart.
	HashFlow = HashSource | HashSourcePort | HashDestinationPort

	hashPorts = HashSourcePort | HashDestinationPort
)

// hashNames are those of the fields in the order of their bits.
var hashNames = []string{"source", "destination", "source_port", "destination_port"}

// ParseHashFields takes the name of a field, or flow.
func ParseHashFields(name string) (HashFields, bool) {
	if name == "flow" {
		return HashFlow, true
	}
	for i, n := range hashNames {
		if n == name {
			return 1 << i, true
		}
	}
	return 0, false
}

// Names are those of the fields.
func (f HashFields) Names() []string {
	var names []string
	for i, n := range hashNames {
		if f&(1<<i) != 0 {
			names = append(names, n)
		}
	}
	return names
}

func (f HashFields) String() string { return strings.Join(f.Names(), ", ") }

// NeedPorts tells whether a packet without ports, a later fragment, has no hash.
func (f HashFields) NeedPorts() bool { return f&hashPorts != 0 }
