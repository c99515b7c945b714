//go:build e2e && record

package e2e

import "testing"

// TestRecord writes what a kubelet with the gate on makes of the pods, on every
// kind of node, into test/conformance/testdata.
func TestRecord(t *testing.T) {
	for _, c := range append(append([]column{}, columns...), matrix...) {
		t.Run(c.name, func(t *testing.T) {
			if err := runOracle(t, c).Write(); err != nil {
				t.Fatal(err)
			}
		})
	}
}
