package kernel

import "testing"

// What the programs are for, as a user would type it, on pools of every kind.
func TestFlagship(t *testing.T) { runInside(t, "^TestFlagship") }
