package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

// maxSize bounds the configuration file, in bytes: that of a ConfigMap.
const maxSize = 1 << 20

// Overlay changes a configuration that is decoded and not yet defaulted. It is
// how flags override a file: what they set takes part in defaulting and
// validation like the rest.
type Overlay func(*MemoryQoSConfiguration)

// Load reads the file at path, lays the overlays over it, defaults and validates.
// Without a path the configuration is the default one, overlaid.
func Load(path string, overlays ...Overlay) (*MemoryQoSConfiguration, error) {
	if path == "" {
		return complete(&MemoryQoSConfiguration{}, overlays)
	}
	data, err := readFile(path)
	if err != nil {
		return nil, err
	}
	c, err := Decode(data, overlays...)
	if err != nil {
		return nil, fmt.Errorf("configuration %s: %w", path, err)
	}
	return c, nil
}

// readFile reads a configuration file, and one byte more than it may have.
func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	defer f.Close() //nolint:errcheck // read only
	data, err := io.ReadAll(io.LimitReader(f, maxSize+1))
	if err != nil {
		return nil, fmt.Errorf("read configuration %s: %w", path, err)
	}
	return data, nil
}

// Decode turns YAML or JSON into a defaulted, valid configuration. It is
// strict: unknown, misspelt, duplicate and wrongly cased fields are errors, and
// so is a second document.
func Decode(data []byte, overlays ...Overlay) (*MemoryQoSConfiguration, error) {
	if len(data) > maxSize {
		return nil, fmt.Errorf("larger than %d bytes", maxSize)
	}
	if n := documents(data); n != 1 {
		return nil, fmt.Errorf("has %d YAML documents, want exactly one", n)
	}
	asJSON, err := yaml.YAMLToJSONStrict(data)
	if err != nil {
		return nil, err
	}
	c := &MemoryQoSConfiguration{}
	strict, err := kjson.UnmarshalStrict(asJSON, c)
	if err != nil {
		return nil, err
	}
	if c.APIVersion != APIVersion || c.Kind != Kind {
		return nil, fmt.Errorf("is apiVersion %q kind %q, want apiVersion %q kind %q", c.APIVersion, c.Kind, APIVersion, Kind)
	}
	if len(strict) > 0 {
		return nil, utilerrors.NewAggregate(strict)
	}
	return complete(c, overlays)
}

func complete(c *MemoryQoSConfiguration, overlays []Overlay) (*MemoryQoSConfiguration, error) {
	for _, overlay := range overlays {
		overlay(c)
	}
	SetDefaults(c)
	if errs := Validate(c); len(errs) > 0 {
		return nil, errs.ToAggregate()
	}
	return c, nil
}

// documents counts the YAML documents that hold something.
func documents(data []byte) int {
	n := 0
	for doc := range bytes.SplitSeq(append([]byte("\n"), data...), []byte("\n---")) {
		for line := range bytes.Lines(doc) {
			line = bytes.TrimSpace(line)
			if len(line) > 0 && line[0] != '#' {
				n++
				break
			}
		}
	}
	return n
}

// UnmarshalJSON refuses the number that YAML makes of an unquoted 1.27: that of
// 1.30 would be 1.3, another release.
func (v *EmulationVersion) UnmarshalJSON(data []byte) error {
	var s string
	if err := json.Unmarshal(data, &s); err != nil {
		var wrong *json.UnmarshalTypeError
		if errors.As(err, &wrong) {
			return fmt.Errorf("emulationVersion: %s is a %s, want a string: put it in quotes, such as \"1.27\"", data, wrong.Value)
		}
		return err
	}
	*v = EmulationVersion(s)
	return nil
}
