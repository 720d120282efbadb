package api

import (
	"reflect"

	"github.com/danielgtaylor/huma/v2"

	"decant/api/client"
)

// huma asks a type for its schema. The quantities of the client know nothing of huma, so
// these are asked in their place.
type (
	sizeSchema   struct{}
	rateSchema   struct{}
	periodSchema struct{}
)

// describeQuantities has to come before the operations are registered.
func describeQuantities(schemas huma.Registry) {
	schemas.RegisterTypeAlias(reflect.TypeFor[client.Size](), reflect.TypeFor[sizeSchema]())
	schemas.RegisterTypeAlias(reflect.TypeFor[client.Rate](), reflect.TypeFor[rateSchema]())
	schemas.RegisterTypeAlias(reflect.TypeFor[client.Period](), reflect.TypeFor[periodSchema]())
}

// Schema implements huma.SchemaProvider.
func (sizeSchema) Schema(huma.Registry) *huma.Schema {
	return quantitySchema("bytes, or a text with a unit, all powers of 1024", "64MiB")
}

// Schema implements huma.SchemaProvider.
func (rateSchema) Schema(huma.Registry) *huma.Schema {
	return quantitySchema("bytes per second, or a text with a unit, all powers of 1024; 0 or \"unlimited\" is no limit", "50MiB/s")
}

// Schema implements huma.SchemaProvider.
func (periodSchema) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{Type: huma.TypeString, Description: "a time with its unit", Examples: []any{"500ms"}, MaxLength: new(32)}
}

func quantitySchema(description, example string) *huma.Schema {
	return &huma.Schema{
		Description: description,
		Examples:    []any{example},
		OneOf: []*huma.Schema{
			{Type: huma.TypeInteger, Format: "int64", Minimum: new(0.0)},
			{Type: huma.TypeString, MaxLength: new(64)},
		},
	}
}
