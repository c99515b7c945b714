// Guest is the test node's agent inside the virtual machine: it runs commands,
// moves files, snapshots the memory cgroups and dials ports for the host, over
// HTTP. It uses the standard library only, so that it stays a small static
// binary on an emulated CPU.
package main
