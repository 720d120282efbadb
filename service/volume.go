package service

import (
	"decant/clone"
	"decant/nbd"
)

// volume is the clone of a run as guests use it.
type volume struct {
	*clone.Clone
}

var _ nbd.Device = (*volume)(nil)
