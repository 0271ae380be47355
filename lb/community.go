package lb

import (
	"fmt"
	"strconv"
	"strings"
)

// Community is a BGP community: standard (RFC 1997) as A:B with 16 bits each,
// large (RFC 8092) as A:B:C with 32 bits each.
type Community struct {
	Large   bool
	A, B, C uint32
}

// GracefulShutdown says that a route will be withdrawn soon (RFC 8326).
var GracefulShutdown = Community{A: 0xffff, B: 0x0000}

// wellKnown are the names of IANA's "BGP Well-known Communities" registry.
var wellKnown = map[string]Community{
	"graceful-shutdown":   GracefulShutdown,
	"blackhole":           {A: 0xffff, B: 0x029a}, // RFC 7999
	"no-export":           {A: 0xffff, B: 0xff01}, // RFC 1997
	"no-advertise":        {A: 0xffff, B: 0xff02}, // RFC 1997
	"no-export-subconfed": {A: 0xffff, B: 0xff03}, // RFC 1997
	"no-peer":             {A: 0xffff, B: 0xff04}, // RFC 3765
}

// ParseCommunity reads "64512:100", "64512:1:2" or a well-known name.
func ParseCommunity(s string) (Community, error) {
	if c, ok := wellKnown[s]; ok {
		return c, nil
	}
	parts := strings.Split(s, ":")
	bits := 16
	if len(parts) == 3 {
		bits = 32
	}
	var numbers [3]uint32
	for i, part := range parts {
		n, err := strconv.ParseUint(part, 10, bits)
		if err != nil || len(parts) < 2 || len(parts) > 3 {
			return Community{}, fmt.Errorf("%q is no community: write 64512:100, 64512:1:2 or a well-known name such as no-export", s)
		}
		numbers[i] = uint32(n)
	}
	return Community{Large: len(parts) == 3, A: numbers[0], B: numbers[1], C: numbers[2]}, nil
}

func (c Community) String() string {
	if c.Large {
		return fmt.Sprintf("%d:%d:%d", c.A, c.B, c.C)
	}
	return fmt.Sprintf("%d:%d", c.A, c.B)
}
