package main

import (
	"crypto/sha256"
	"encoding/hex"
	"io"
	"path/filepath"
	"slices"
	"time"

	cdx "github.com/CycloneDX/cyclonedx-go"
)

// sbom writes which modules are in the binary, as a CycloneDX document.
func (r release) sbom(arch string, modules []module) error {
	sum, err := sum256(r.binary(arch))
	if err != nil {
		return err
	}
	version := packageVersion(r.version, r.made)
	self := cdx.Component{
		BOMRef: "pkg:golang/github.com/halfproxy/halfproxy@" + version, PackageURL: "pkg:golang/github.com/halfproxy/halfproxy@" + version,
		Type: cdx.ComponentTypeApplication, Name: "halfproxy", Version: version, Description: summary,
		Hashes:   &[]cdx.Hash{{Algorithm: cdx.HashAlgoSHA256, Value: hex.EncodeToString(sum)}},
		Licenses: &cdx.Licenses{{Expression: license}},
	}
	var components []cdx.Component
	var refs []string
	for _, m := range modules {
		c := m.component()
		components = append(components, c)
		refs = append(refs, c.BOMRef)
	}

	bom := cdx.NewBOM()
	bom.SerialNumber = serial(sum)
	bom.Metadata = &cdx.Metadata{
		Timestamp: r.made.Format(time.RFC3339),
		Component: &self,
		Properties: &[]cdx.Property{
			{Name: "halfproxy:goos", Value: "linux"},
			{Name: "halfproxy:goarch", Value: arch},
		},
	}
	bom.Components = &components
	bom.Dependencies = &[]cdx.Dependency{{Ref: self.BOMRef, Dependencies: &refs}}
	name := "halfproxy-" + version + "-" + arch + ".cdx.json"
	return create(filepath.Join(r.out, name), func(w io.Writer) error {
		return cdx.NewBOMEncoder(w, cdx.BOMFileFormatJSON).SetPretty(true).Encode(bom)
	})
}

func (m module) component() cdx.Component {
	purl := "pkg:golang/" + m.path + "@" + m.version
	c := cdx.Component{BOMRef: purl, PackageURL: purl, Type: cdx.ComponentTypeLibrary, Name: m.path, Version: m.version}
	var licenses cdx.Licenses
	var ids []string
	for _, n := range m.notices {
		for _, id := range n.licenses {
			if !slices.Contains(ids, id) {
				ids = append(ids, id)
				licenses = append(licenses, cdx.LicenseChoice{License: &cdx.License{ID: id}})
			}
		}
	}
	c.Licenses = &licenses
	if m.sum != "" {
		c.Properties = &[]cdx.Property{{Name: "halfproxy:go.sum", Value: m.sum}}
	}
	return c
}

// serial is a UUID that is the binary's: the same one has the same.
func serial(sum []byte) string {
	u := sha256.Sum256(append([]byte("halfproxy bill of materials "), sum...))
	u[6], u[8] = u[6]&0x0f|0x80, u[8]&0x3f|0x80 // version 8, RFC 9562
	h := hex.EncodeToString(u[:16])
	return "urn:uuid:" + h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}
